/* System calls, and what little this library takes from the C library of the program, if there is one. */

static inline long raw6(long number, long a, long b, long c, long d, long e, long f)
{
	long result;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	register long r9 __asm__("r9") = f;
	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
			 : "rcx", "r11", "memory");
	return result;
}

#define raw(number, a, b, c) raw6(number, (long)(a), (long)(b), (long)(c), 0, 0, 0)

enum {
	SYS_close = 3, SYS_mmap = 9, SYS_munmap = 11, SYS_ioctl = 16, SYS_madvise = 28, SYS_dup = 32, SYS_dup2 = 33, SYS_nanosleep = 35,
	SYS_getpid = 39, SYS_socket = 41, SYS_sendmsg = 46, SYS_fcntl = 72, SYS_readlink = 89, SYS_prctl = 157, SYS_openat = 257,
	SYS_fallocate = 285, SYS_dup3 = 292, SYS_process_vm_readv = 310, SYS_kcmp = 312, SYS_seccomp = 317, SYS_close_range = 436,
};

enum { EPERM_ = 1, EINTR_ = 4, EIO_ = 5, EAGAIN_ = 11, ENOSYS_ = 38, EOPNOTSUPP_ = 95, ECONNREFUSED_ = 111, EAGAIN_PAUSE = 500 * 1000 };
enum { PROT_READ = 1, PROT_WRITE = 2, MAP_SHARED = 1 };
enum { MADV_DONTFORK = 10, MADV_WIPEONFORK = 18 };
enum { PR_GET_SECCOMP = 21, PR_SET_SECCOMP = 22 };
enum { AT_FDCWD = -100, O_RDWR = 2, O_CLOEXEC = 02000000 };

/* True for a result that is an error: a negative errno. */
static inline int failed(long result)
{
	return (u64)result > (u64)-4096;
}

static inline long map(u64 size, int protection, int flags, int fd, u64 offset)
{
	return raw6(SYS_mmap, 0, (long)size, protection, flags, fd, (long)offset);
}

/* Sleeps. Returns 0, or a negative errno. */
static inline long pause_for(long nanoseconds)
{
	long time[2] = {0, nanoseconds};
	return raw(SYS_nanosleep, time, 0, 0);
}

static inline u64 clock(void)
{
	return __builtin_ia32_rdtsc();
}

/* The file of a function (dladdr(3)). */
struct object {
	const char *name;
	void *base;
	const char *symbol;
	void *address;
};

/* They are absent in a program without a C library, and the last two in one whose C library has them in another file. */
extern int *__errno_location(void) __attribute__((weak));
extern void *dlsym(void *handle, const char *name) __attribute__((weak));
extern int dladdr(const void *address, struct object *object) __attribute__((weak));
#define RTLD_NEXT ((void *)-1l)

/* Returns the result of a system call as the C library does. */
static inline long answer(long result)
{
	if (!failed(result))
		return result;
	if (__errno_location)
		*__errno_location() = (int)-result;
	return -1;
}
