/* Faults at the system calls that make something durable: a library for LD_PRELOAD, for the tests alone.

   Every call that changes or syncs what lies under FAULTS_UNDER is numbered, from 1 on, and told in FAULTS_LOG once it
   was made, one line each, its fields apart by tabs:

       number  call  result  path  offset-or-second-path

   What was written goes, in the same order, to FAULTS_DATA where that is given. FAULTS_CONTROL holds one line that may
   be replaced at any time, and is read anew at each call:

       action  kinds  from  count  errno  suffix

   From the call of that number on, at most `count` calls (0: all) of these kinds (a sum of those below) whose path ends
   in `suffix` (-: any) meet this action: `before` and `after` kill the process by SIGKILL there, `fail` lets the call
   fail, `short` writes half of what it was given, `torn` writes half and fails at the next. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { SYNC = 1, ROOM = 2, NAME = 4 };

struct control {
    char action[16];
    int kinds;
    long from;
    long count;
    int error;
    char suffix[256];
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long calls;
static long met;
static char last_control[512];
static int log_file = -1;
static int data_file = -1;

static int open_to_append(const char *variable)
{
    const char *path = getenv(variable);
    return path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600) : -1;
}

/* Returns whether the path is one that counts. What lies in shared memory (-shm) is never meant to be durable. */
static int is_ours(const char *path)
{
    const char *under = getenv("FAULTS_UNDER");
    if (!under)
        return 0;
    size_t length = strlen(under), all = strlen(path);
    if (strncmp(path, under, length) || (path[length] != '/' && path[length] != '\0'))
        return 0;
    return all < 4 || strcmp(path + all - 4, "-shm");
}

static int path_of(int file, char *path)
{
    char link[64];
    int saved = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    errno = saved;
    if (length < 0)
        return 0;
    path[length] = '\0';
    return is_ours(path);
}

/* Makes a whole path of one that is relative to an open directory. */
static int path_at(int directory, const char *name, char *path)
{
    if (name[0] == '/' || directory == AT_FDCWD) {
        if (name[0] != '/')
            return 0;
        snprintf(path, PATH_MAX, "%s", name);
        return is_ours(path);
    }
    char base[PATH_MAX];
    if (!path_of(directory, base))
        return 0;
    snprintf(path, PATH_MAX, "%.2000s/%.2000s", base, name);
    return is_ours(path);
}

static void read_control(struct control *found)
{
    char text[512] = "";
    const char *path = getenv("FAULTS_CONTROL");
    found->action[0] = '\0';
    int file = path ? (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return;
    ssize_t length = syscall(SYS_read, file, text, sizeof text - 1);
    syscall(SYS_close, file);
    if (length <= 0)
        return;
    if (strcmp(text, last_control)) {
        snprintf(last_control, sizeof last_control, "%s", text);
        met = 0;
    }
    if (sscanf(text, "%15s %d %ld %ld %d %255s", found->action, &found->kinds, &found->from, &found->count,
               &found->error, found->suffix) != 6)
        abort();
}

static int meets(const struct control *control, int kind, const char *path)
{
    size_t length = strlen(path), suffix = strlen(control->suffix);
    if (!control->action[0] || !(control->kinds & kind) || calls < control->from)
        return 0;
    if (strcmp(control->suffix, "-") && (suffix > length || strcmp(path + length - suffix, control->suffix)))
        return 0;
    return control->count == 0 || met < control->count;
}

static void tell(const char *call, long result, const char *path, const char *more)
{
    char line[3 * PATH_MAX];
    if (log_file < 0)
        log_file = open_to_append("FAULTS_LOG");
    int length = snprintf(line, sizeof line, "%ld\t%s\t%ld\t%s\t%s\n", calls, call, result, path, more);
    if (log_file >= 0)
        syscall(SYS_write, log_file, line, length);
}

static void die(void)
{
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;)
        pause();
}

/* One numbered call: what is to happen to it happens, else it is made. `data` is what a write was given. */
static long step(const char *call, int kind, const char *path, const char *more, const void *data, long number, long a,
                 long b, long c, long d, long e)
{
    struct control control;
    int saved = errno;
    pthread_mutex_lock(&mutex);
    calls++;
    read_control(&control);
    int is_met = meets(&control, kind, path);
    long result;
    met += is_met;
    if (is_met && !strcmp(control.action, "before"))
        die();
    int is_write = data != NULL;
    int is_half = is_met && is_write && c > 1 &&
                  (!strcmp(control.action, "short") || (!strcmp(control.action, "torn") && met % 2));
    errno = saved;
    if (is_met && (!strcmp(control.action, "fail") || (!strcmp(control.action, "torn") && !is_half))) {
        result = -1;
        errno = control.error;
    } else {
        result = syscall(number, a, b, is_half ? c / 2 : c, d, e);
    }
    saved = errno;
    if (is_write && result > 0 && (data_file >= 0 || (data_file = open_to_append("FAULTS_DATA")) >= 0))
        syscall(SYS_write, data_file, data, result);
    tell(call, result, path, more);
    if (is_met && !strcmp(control.action, "after"))
        die();
    pthread_mutex_unlock(&mutex);
    errno = saved;
    return result;
}

int fsync(int file)
{
    char path[PATH_MAX];
    if (!path_of(file, path))
        return (int)syscall(SYS_fsync, file);
    return (int)step("fsync", SYNC, path, "-", NULL, SYS_fsync, file, 0, 0, 0, 0);
}

int fdatasync(int file)
{
    char path[PATH_MAX];
    if (!path_of(file, path))
        return (int)syscall(SYS_fdatasync, file);
    return (int)step("fdatasync", SYNC, path, "-", NULL, SYS_fdatasync, file, 0, 0, 0, 0);
}

ssize_t write(int file, const void *data, size_t size)
{
    char path[PATH_MAX], offset[32];
    struct stat state;
    if (!path_of(file, path) || syscall(SYS_fstat, file, &state) || !S_ISREG(state.st_mode))
        return syscall(SYS_write, file, data, size);
    int is_appending = (int)syscall(SYS_fcntl, file, F_GETFL) & O_APPEND;
    snprintf(offset, sizeof offset, "%ld", is_appending ? (long)state.st_size : (long)lseek(file, 0, SEEK_CUR));
    return step("write", ROOM, path, offset, data, SYS_write, file, (long)data, (long)size, 0, 0);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at)
{
    char path[PATH_MAX], offset[32];
    if (!path_of(file, path))
        return syscall(SYS_pwrite64, file, data, size, at);
    snprintf(offset, sizeof offset, "%ld", (long)at);
    return step("pwrite", ROOM, path, offset, data, SYS_pwrite64, file, (long)data, (long)size, (long)at, 0);
}

ssize_t pwrite(int file, const void *data, size_t size, off_t at)
{
    return pwrite64(file, data, size, at);
}

int ftruncate64(int file, off64_t size)
{
    char path[PATH_MAX], length[32];
    if (!path_of(file, path))
        return (int)syscall(SYS_ftruncate, file, size);
    snprintf(length, sizeof length, "%ld", (long)size);
    return (int)step("ftruncate", ROOM, path, length, NULL, SYS_ftruncate, file, (long)size, 0, 0, 0);
}

int ftruncate(int file, off_t size)
{
    return ftruncate64(file, size);
}

static int open_at(int directory, const char *name, int flags, mode_t mode)
{
    char path[PATH_MAX];
    int saved = errno;
    int creates = (flags & O_CREAT) && path_at(directory, name, path) &&
                  syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    int truncates = (flags & O_TRUNC) && path_at(directory, name, path);
    errno = saved;
    if (!creates && !truncates)
        return (int)syscall(SYS_openat, directory, name, flags, mode);
    const char *call = creates ? "create" : "truncate";
    return (int)step(call, ROOM, path, "0", NULL, SYS_openat, directory, (long)name, flags, mode, 0);
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if (flags & (O_CREAT | O_TMPFILE)) {                                                                               \
        va_list arguments;                                                                                             \
        va_start(arguments, flags);                                                                                    \
        mode = va_arg(arguments, mode_t);                                                                              \
        va_end(arguments);                                                                                             \
    }

int openat(int directory, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_at(directory, name, flags, mode);
}

int openat64(int directory, const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_at(directory, name, flags, mode);
}

int open(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_at(AT_FDCWD, name, flags, mode);
}

int open64(const char *name, int flags, ...)
{
    MODE_OF(flags)
    return open_at(AT_FDCWD, name, flags, mode);
}

int renameat2(int from, const char *name, int to, const char *new_name, unsigned flags)
{
    char path[PATH_MAX], new_path[PATH_MAX];
    if (!path_at(from, name, path) || !path_at(to, new_name, new_path))
        return (int)syscall(SYS_renameat2, from, name, to, new_name, flags);
    return (int)step("rename", NAME, path, new_path, NULL, SYS_renameat2, from, (long)name, to, (long)new_name, flags);
}

int renameat(int from, const char *name, int to, const char *new_name)
{
    return renameat2(from, name, to, new_name, 0);
}

int rename(const char *name, const char *new_name)
{
    return renameat2(AT_FDCWD, name, AT_FDCWD, new_name, 0);
}

int linkat(int from, const char *name, int to, const char *new_name, int flags)
{
    char path[PATH_MAX], new_path[PATH_MAX];
    if (!path_at(from, name, path) || !path_at(to, new_name, new_path))
        return (int)syscall(SYS_linkat, from, name, to, new_name, flags);
    return (int)step("link", ROOM, path, new_path, NULL, SYS_linkat, from, (long)name, to, (long)new_name, flags);
}

int link(const char *name, const char *new_name)
{
    return linkat(AT_FDCWD, name, AT_FDCWD, new_name, 0);
}

int unlinkat(int directory, const char *name, int flags)
{
    char path[PATH_MAX];
    int saved = errno;
    int counts = path_at(directory, name, path) && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0;
    errno = saved;
    if (!counts)
        return (int)syscall(SYS_unlinkat, directory, name, flags);
    const char *call = flags & AT_REMOVEDIR ? "rmdir" : "unlink";
    return (int)step(call, NAME, path, "-", NULL, SYS_unlinkat, directory, (long)name, flags, 0, 0);
}

int unlink(const char *name)
{
    return unlinkat(AT_FDCWD, name, 0);
}

int rmdir(const char *name)
{
    return unlinkat(AT_FDCWD, name, AT_REMOVEDIR);
}

int mkdirat(int directory, const char *name, mode_t mode)
{
    char path[PATH_MAX];
    if (!path_at(directory, name, path) || syscall(SYS_faccessat, AT_FDCWD, path, F_OK) == 0)
        return (int)syscall(SYS_mkdirat, directory, name, mode);
    return (int)step("mkdir", ROOM, path, "-", NULL, SYS_mkdirat, directory, (long)name, mode, 0, 0);
}

int mkdir(const char *name, mode_t mode)
{
    return mkdirat(AT_FDCWD, name, mode);
}
