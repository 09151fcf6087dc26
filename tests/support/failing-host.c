/*
 * A host that fails. This library is preloaded (LD_PRELOAD) into the program under test and stands before the C library.
 *
 * FAIL="NAME ERRNO FIRST TIMES": the calls of NAME from number FIRST on (counted from 1) fail with ERRNO, TIMES calls in
 * all, or every later one if TIMES is 0. NAME is a C function, `ioctl:NUMBER` for an ioctl of KVM (two hexadecimal
 * digits), or `cap:NUMBER` for the check of a capability (decimal), which then answers 0.
 *
 * A write to an eventfd never fails, because the kernel has no error for it.
 *
 * CALLS=FILE: counts all calls, failed or not. The file is an array of `struct call`.
 *
 * LIE="REQUEST ARGUMENT ANSWER ERRNO SKIP TIMES": false answers of ioctl. The request is hexadecimal, the argument -1
 * stands for any, and SKIP matching requests pass to the kernel first. With the errno -1, the library sends SIGTERM
 * instead and passes the request to the kernel. Up to eight lies are separated by semicolons.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

/* Their headers declare the functions with other types than the ones below. */
int kill(pid_t process, int number);
enum { PROTECTION = 3 /* read, write */, SHARED = 1, TERMINATE = 15 };
#define FAILED ((void *)-1)

struct call {
    char name[24];
    unsigned long count;
};

/* Functions that return -1 with errno set. */
#define FUNCTIONS(X)                                                                                                     \
    X(int, epoll_create1, epoll_create1, (int flags), (flags))                                                           \
    X(int, epoll_ctl, epoll_ctl, (int set, int op, int fd, void *event), (set, op, fd, event))                           \
    X(int, epoll_wait, epoll_wait, (int set, void *events, int most, int wait), (set, events, most, wait))               \
    X(int, poll, poll, (void *fds, unsigned long count, int wait), (fds, count, wait))                                   \
    X(int, ppoll, ppoll, (void *fds, unsigned long count, void *wait, void *mask), (fds, count, wait, mask))             \
    X(int, timer_create, timer_create, (int clock, void *event, void *timer), (clock, event, timer))                     \
    X(int, timer_settime, timer_settime, (void *timer, int flags, void *to, void *old), (timer, flags, to, old))         \
    X(int, timer_delete, timer_delete, (void *timer), (timer))                                                           \
    X(int, sigaction, sigaction, (int number, void *new, void *old), (number, new, old))                                 \
    X(int, madvise, madvise, (void *start, size_t size, int advice), (start, size, advice))                              \
    X(int, mprotect, mprotect, (void *start, size_t size, int access), (start, size, access))                            \
    X(int, flock, flock, (int fd, int operation), (fd, operation))                                                       \
    X(int, rename, rename, (const char *from, const char *to), (from, to))                                               \
    X(int, fsync, fsync, (int fd), (fd))                                                                                 \
    X(int, fdatasync, fdatasync, (int fd), (fd))                                                                         \
    X(int, sync_file_range, sync_file_range, (int fd, off_t at, off_t len, unsigned how), (fd, at, len, how))           \
    X(int, ftruncate, ftruncate64, (int fd, off_t size), (fd, size))                                                     \
    X(off_t, lseek, lseek64, (int fd, off_t offset, int from), (fd, offset, from))                                       \
    X(ssize_t, read, read, (int fd, void *to, size_t size), (fd, to, size))                                              \
    X(ssize_t, writev, writev, (int fd, const void *parts, int count), (fd, parts, count))                               \
    X(ssize_t, pread, pread64, (int fd, void *to, size_t size, off_t at), (fd, to, size, at))                            \
    X(ssize_t, pwrite, pwrite64, (int fd, const void *from, size_t size, off_t at), (fd, from, size, at))                \
    X(ssize_t, preadv, preadv, (int fd, const void *parts, int count, off_t at), (fd, parts, count, at))                 \
    X(ssize_t, preadv64, preadv64, (int fd, const void *parts, int count, off_t at), (fd, parts, count, at))             \
    X(ssize_t, pwritev, pwritev, (int fd, const void *parts, int count, off_t at), (fd, parts, count, at))               \
    X(ssize_t, pwritev64, pwritev64, (int fd, const void *parts, int count, off_t at), (fd, parts, count, at))           \
    X(int, dup, dup, (int fd), (fd))

/* The others: variadic, of another return type, or with several names. */
#define OTHERS(X) X(eventfd) X(open) X(mmap) X(fcntl) X(write) X(write_stderr) X(pthread_create) X(pthread_sigmask)

enum {
#define INDEX(type, name, symbol, parameters, arguments) I_##name,
    FUNCTIONS(INDEX)
#define OTHER_INDEX(name) I_##name,
    OTHERS(OTHER_INDEX)
    IOCTLS,
    CAPS = IOCTLS + 256,
    CALLS = CAPS + 256
};

static struct call own[CALLS];
static struct call *calls = own;
static int ready, wrong = -1, wrong_errno;
static unsigned long wrong_first, wrong_times;

#define POINTER(type, name, symbol, parameters, arguments) static type (*real_##name) parameters;
FUNCTIONS(POINTER)
static int (*real_create)(void *, const void *, void *(*)(void *), void *);
static int (*real_mask)(int, const void *, void *);

__attribute__((constructor)) static void begin(void) {
#define RESOLVE(type, name, symbol, parameters, arguments) real_##name = (type (*) parameters)dlsym(RTLD_NEXT, #symbol);
    FUNCTIONS(RESOLVE)
    real_create = (int (*)(void *, const void *, void *(*)(void *), void *))dlsym(RTLD_NEXT, "pthread_create");
    real_mask = (int (*)(int, const void *, void *))dlsym(RTLD_NEXT, "pthread_sigmask");
    const char *file = getenv("CALLS");
    if (file) {
        long fd = syscall(SYS_open, file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (fd >= 0 && syscall(SYS_ftruncate, fd, sizeof own) == 0) {
            long place = syscall(SYS_mmap, 0, sizeof own, PROTECTION, SHARED, fd, 0);
            if (place > 0) calls = (struct call *)place;
        }
        syscall(SYS_close, fd);
    }
#define NAME(type, id, symbol, parameters, arguments) strcpy(calls[I_##id].name, #id);
    FUNCTIONS(NAME)
#define OTHER_NAME(id) strcpy(calls[I_##id].name, #id);
    OTHERS(OTHER_NAME)
    for (int number = 0; number < 256; number++) {
        sprintf(calls[IOCTLS + number].name, "ioctl:%02x", number);
        sprintf(calls[CAPS + number].name, "cap:%d", number);
    }
    char name[24];
    const char *fail = getenv("FAIL");
    if (fail && sscanf(fail, "%23s %d %lu %lu", name, &wrong_errno, &wrong_first, &wrong_times) == 4)
        for (int index = 0; index < CALLS; index++)
            if (!strcmp(calls[index].name, name)) wrong = index;
    ready = 1;
}

/* Counts a call. Returns 1, with errno set, if it must fail. */
static int fails(int index) {
    if (!ready) return 0;
    unsigned long count = __sync_add_and_fetch(&calls[index].count, 1);
    if (index != wrong || count < wrong_first || (wrong_times && count >= wrong_first + wrong_times)) return 0;
    errno = wrong_errno;
    return 1;
}

#define DEFINE(type, name, symbol, parameters, arguments)                                                                \
    type symbol parameters {                                                                                             \
        if (fails(I_##name)) return -1;                                                                                  \
        if (!real_##name) real_##name = (type (*) parameters)dlsym(RTLD_NEXT, #symbol);                                  \
        return real_##name arguments;                                                                                    \
    }
FUNCTIONS(DEFINE)

/* True for each descriptor that is an eventfd. */
static char is_event[1024];

static int note(int fd, int event) {
    if (fd >= 0 && fd < (int)sizeof is_event) is_event[fd] = event;
    return fd;
}

int eventfd(unsigned value, int flags) {
    return fails(I_eventfd) ? -1 : note(syscall(SYS_eventfd2, value, flags), 1);
}

int close(int fd) {
    note(fd, 0);
    return syscall(SYS_close, fd);
}

#define OPEN(symbol)                                                                                                     \
    int symbol(const char *path, int flags, ...) {                                                                       \
        va_list list;                                                                                                    \
        va_start(list, flags);                                                                                           \
        int mode = va_arg(list, int);                                                                                    \
        va_end(list);                                                                                                    \
        return fails(I_open) ? -1 : syscall(SYS_openat, AT_FDCWD, path, flags, mode);                                    \
    }
OPEN(open)
OPEN(open64)

void *mmap(void *start, size_t size, int access, int flags, int fd, off_t at) {
    return fails(I_mmap) ? FAILED : (void *)syscall(SYS_mmap, start, size, access, flags, fd, at);
}

void *mmap64(void *start, size_t size, int access, int flags, int fd, off_t at) {
    return mmap(start, size, access, flags, fd, at);
}

#define FCNTL(symbol)                                                                                                    \
    int symbol(int fd, int command, ...) {                                                                               \
        va_list list;                                                                                                    \
        va_start(list, command);                                                                                         \
        long argument = va_arg(list, long);                                                                              \
        va_end(list);                                                                                                    \
        if (fails(I_fcntl)) return -1;                                                                                   \
        int answer = syscall(SYS_fcntl, fd, command, argument);                                                          \
        int copies = command == F_DUPFD || command == F_DUPFD_CLOEXEC;                                                   \
        return copies && fd >= 0 && fd < (int)sizeof is_event ? note(answer, is_event[fd]) : answer;                     \
    }
FCNTL(fcntl)
FCNTL(fcntl64)

ssize_t write(int fd, const void *from, size_t size) {
    int event = fd >= 0 && fd < (int)sizeof is_event && is_event[fd];
    if (!event && fails(fd == 2 ? I_write_stderr : I_write)) return -1;
    return syscall(SYS_write, fd, from, size);
}

int pthread_create(void *thread, const void *attributes, void *(*start)(void *), void *argument) {
    if (fails(I_pthread_create)) return wrong_errno;
    return real_create(thread, attributes, start, argument);
}

int pthread_sigmask(int how, const void *new, void *old) {
    if (fails(I_pthread_sigmask)) return wrong_errno;
    return real_mask(how, new, old);
}

/* Returns 1 if `answer` is the answer, and 0 if the kernel answers. */
static int lies(unsigned long request, long argument, int *answer) {
    enum { MOST = 8 };
    static int seen[MOST];
    const char *lie = getenv("LIE");
    for (int number = 0; lie && number < MOST; number++) {
        unsigned long which;
        long of;
        int error, skip, times;
        int parts = sscanf(lie, "%lx %ld %d %d %d %d", &which, &of, answer, &error, &skip, &times);
        lie = strchr(lie, ';');
        if (lie) lie++;
        if (parts != 6 || request != which || (of != -1 && of != argument)) continue;
        if (seen[number]++ < skip || seen[number] > skip + times) continue;
        if (error != -1) {
            errno = error;
            return 1;
        }
        kill(getpid(), TERMINATE);
    }
    return 0;
}

int ioctl(int fd, unsigned long request, ...) {
    va_list list;
    va_start(list, request);
    long argument = va_arg(list, long);
    va_end(list);
    int answer;
    if (lies(request, argument, &answer)) return answer;
    if ((request >> 8 & 0xff) == 0xae) {
        if ((request & 0xff) == 3 && argument >= 0 && argument < 256 && fails(CAPS + argument)) return 0;
        if (fails(IOCTLS + (request & 0xff))) return -1;
    }
    return syscall(SYS_ioctl, fd, request, argument);
}
