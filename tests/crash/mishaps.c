/* What goes wrong between a program and its disk, and its clock: preloaded by tests, armed by a failpoint.

   kaizend_mishap("full")   from now on nothing more can be written (ENOSPC)
   kaizend_mishap("short")  the next write ends half-way, and then the disk is full
   kaizend_mishap("sync")   the next fsync fails (EIO), the ones after it do not
   kaizend_mishap("sick")   every fsync from now on fails (EIO)
   kaizend_mishap("back")   the clock of day steps back by an hour

   Only files below $KAIZEND_MISHAP_ROOT are met. Everything passes until something is armed. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static volatile int full, half, sync_once, sick;
static volatile long back;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }
#define REAL(type, name, ...) \
    static type (*own)(__VA_ARGS__); if (!own) own = (type (*)(__VA_ARGS__)) real(name)

int kaizend_mishap(const char *what) {
    if (!strcmp(what, "full")) full = 1;
    else if (!strcmp(what, "short")) half = 1;
    else if (!strcmp(what, "sync")) sync_once = 1;
    else if (!strcmp(what, "sick")) sick = 1;
    else if (!strcmp(what, "back")) back += 3600;
    else return 0;
    return 1;
}

static int below(const char *path) {
    const char *root = getenv("KAIZEND_MISHAP_ROOT");
    return root && *root && !strncmp(path, root, strlen(root));
}

static int ours(int fd) {
    char link[64], path[PATH_MAX];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static int ours_by_name(const char *path) {
    char whole[2 * PATH_MAX];
    if (path[0] == '/') return below(path);
    if (!getcwd(whole, PATH_MAX)) return 0;
    strcat(whole, "/");
    strncat(whole, path, PATH_MAX - 1);
    return below(whole);
}

/* How much of a write is let through: all of it, half, or -1 for none. */
static ssize_t allowed(int fd, size_t count) {
    if (!(full || half) || !ours(fd)) return (ssize_t) count;
    if (full) { errno = ENOSPC; return -1; }
    half = 0;
    full = 1;
    if (count < 2) { errno = ENOSPC; return -1; }
    return (ssize_t) (count / 2);
}

ssize_t write(int fd, const void *data, size_t count) {
    REAL(ssize_t, "write", int, const void *, size_t);
    ssize_t most = allowed(fd, count);
    return most < 0 ? -1 : own(fd, data, (size_t) most);
}

#define PWRITE(name, offset_type) \
    ssize_t name(int fd, const void *data, size_t count, offset_type place) { \
        REAL(ssize_t, #name, int, const void *, size_t, offset_type); \
        ssize_t most = allowed(fd, count); \
        return most < 0 ? -1 : own(fd, data, (size_t) most, place); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define SENDFILE(name, offset_type) \
    ssize_t name(int out, int in, offset_type *place, size_t count) { \
        REAL(ssize_t, #name, int, int, offset_type *, size_t); \
        ssize_t most = allowed(out, count > 64 ? 64 : count); \
        if (most < 0) return -1; \
        return own(out, in, place, full ? (size_t) most : count); \
    }
SENDFILE(sendfile, off_t)
SENDFILE(sendfile64, off64_t)

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags) {
    REAL(ssize_t, "copy_file_range", int, off64_t *, int, off64_t *, size_t, unsigned);
    if ((full || half) && ours(out)) { full = 1; half = 0; errno = ENOSPC; return -1; }
    return own(in, from, out, to, count, flags);
}

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (full && ours_by_name(path) && access(path, F_OK)) { errno = ENOSPC; return -1; }
    return own(path, mode);
}

int symlink(const char *target, const char *path) {
    REAL(int, "symlink", const char *, const char *);
    if (full && ours_by_name(path)) { errno = ENOSPC; return -1; }
    return own(target, path);
}

static int synced(int fd, const char *name) {
    int (*own)(int) = (int (*)(int)) real(name);
    if ((sync_once || sick) && ours(fd)) { sync_once = 0; errno = EIO; return -1; }
    return own(fd);
}
int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    REAL(int, "clock_gettime", clockid_t, struct timespec *);
    int found = own(clock, now);
    if (back && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec -= back;
    return found;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    REAL(int, "gettimeofday", struct timeval *, void *);
    int found = own(now, zone);
    if (back) now->tv_sec -= back;
    return found;
}

time_t time(time_t *place) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
