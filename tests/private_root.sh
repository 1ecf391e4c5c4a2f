#!/usr/bin/env bash
# A private root with a service manager in it, on namespaces of their own; started by machine.py, never by hand.
#
#   private_root.sh ROOT GROUP WORLD PYTHON PACKAGES HOST [PROGRAM...]
#
# ROOT is an empty folder to mount on, GROUP an empty cgroup2 of the host, WORLD a folder whose etc/, opt/ and var/ are
# copied in, PYTHON an installation and PACKAGES its site-packages, HOST the host's mount namespace. PROGRAM replaces
# the service manager. Nothing of the host is writable inside: its root is gone after pivot_root.
set -euo pipefail
root=$1 group=$2 world=$3 python=$4 packages=$5 host=$6
shift 6

refuse() { echo "private_root: $1" >&2; exit 69; }
[ $$ = 1 ] || refuse "not the first process of a process namespace"
[ "$(readlink /proc/self/ns/mnt)" != "$host" ] || refuse "in the host's mount namespace"
if [ -z "${KAIZEND_TEST_GROUP:-}" ]; then                   # first move, then a cgroup namespace rooted there
    echo 0 >"$group/cgroup.procs"
    KAIZEND_TEST_GROUP=1 exec unshare --cgroup -- "$0" "$root" "$group" "$world" "$python" "$packages" "$host" "$@"
fi

mount -n --make-rprivate /
mount -n -t tmpfs -o mode=0755,size=4g private "$root"
cd "$root"
mkdir -p usr proc sys dev run tmp var/tmp var/log etc opt/python root old
chmod 1777 tmp var/tmp
for link in bin sbin lib lib64; do [ ! -e "/$link" ] || ln -s "usr/$link" "$link"; done

bind() { mount -n --bind "$1" "$2" && mount -n -o remount,bind,ro,nosuid,nodev "$2"; }
# The copies come first: once anything of the host is bound here, no owner and no mode is changed any more.
cp -r --preserve=mode "$world/etc" "$world/opt" "$world/var" .
chown -R 990:990 var/lib/kaizend
chgrp -R 990 etc/kaizend
chmod -R g+rX etc/kaizend
bind /usr usr
bind "$python" opt/python
bind "$packages" opt/kaizend/.venv/packages
for file in ld.so.cache ld.so.conf ld.so.conf.d; do [ ! -e "/etc/$file" ] || cp -a "/etc/$file" etc/; done
mkdir -p etc/ld.so.conf.d
echo /opt/python/lib >etc/ld.so.conf.d/python.conf
chroot . /sbin/ldconfig

# Of all units that come with systemd only these: nothing that cleans, mounts, logs in or looks for hardware.
mkdir units
for unit in basic.target sysinit.target multi-user.target sockets.target shutdown.target umount.target slices.target \
    local-fs.target paths.target timers.target \
    systemd-journald.service systemd-journald.socket systemd-journald-dev-log.socket; do
    cp "/usr/lib/systemd/system/$unit" units/
done
mkdir units/sockets.target.wants empty
ln -s ../systemd-journald.socket ../systemd-journald-dev-log.socket units/sockets.target.wants/
bind units usr/lib/systemd/system
for folder in system-generators system-environment-generators user-generators system-shutdown; do
    [ ! -d "usr/lib/systemd/$folder" ] || bind empty "usr/lib/systemd/$folder"
done

mount -n -t proc -o nosuid,nodev,noexec proc proc
for part in sys sysrq-trigger irq bus fs; do [ ! -e "proc/$part" ] || { mount -n --bind "proc/$part" "proc/$part"
    mount -n -o remount,bind,ro "proc/$part"; }; done
mount -n -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -n -t cgroup2 -o nosuid,nodev,noexec cgroup2 sys/fs/cgroup
mount -n -t tmpfs -o mode=0755,nosuid,size=1m dev dev
for node in null:3 zero:5 full:7 random:8 urandom:9; do mknod -m 0666 "dev/${node%:*}" c 1 "${node#*:}"; done
mknod -m 0666 dev/tty c 5 0
mkdir dev/pts dev/shm
mount -n -t devpts -o newinstance,ptmxmode=0666,nosuid,noexec devpts dev/pts
mount -n -t tmpfs -o mode=1777,nosuid,nodev shm dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -n -t tmpfs -o mode=0755,nosuid,nodev run run
mount -n -t tmpfs -o mode=1777,nosuid,nodev tmp tmp

pivot_root . old
cd /
umount -n -l /old
rmdir /old
hostname private
[ "$#" -gt 0 ] || set -- /usr/lib/systemd/systemd --log-target=journal --show-status=no --unit=multi-user.target
never=-sys_module,-sys_time,-sys_rawio,-syslog,-wake_alarm,-mac_admin,-mac_override,-sys_boot,-audit_control
exec env -i container=private PATH=/usr/sbin:/usr/bin setpriv --bounding-set "$never" --inh-caps "$never" -- "$@"
