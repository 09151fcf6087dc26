/* The state of the process and of its vCPUs, and what the library shares with the observer. */

#define EXPORT __attribute__((visibility("default")))
#define load(place) __atomic_load_n(place, __ATOMIC_ACQUIRE)
#define store(place, value) __atomic_store_n(place, value, __ATOMIC_RELEASE)
#define add(place, value) __atomic_add_fetch(place, value, __ATOMIC_SEQ_CST)
#define swap(place, from, to)                                                                                          \
	({                                                                                                            \
		u32 expected = from;                                                                                  \
		__atomic_compare_exchange_n(place, &expected, to, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);             \
	})

/* linux/kvm.h */
enum { KVM_CREATE_VM = 0xae01, KVM_CREATE_VCPU = 0xae41, KVM_RUN = 0xae80, KVM_GET_STATS_FD = 0xaece };
#define KVM_GET_MP_STATE 0x8004ae98ul
#define KVM_GET_REGS 0x8090ae81ul
#define KVM_GET_SREGS 0x8138ae83ul
enum { EXIT_IO = 2, EXIT_HLT = 5, EXIT_MMIO = 6, EXIT_SHUTDOWN = 8, EXIT_FAIL_ENTRY = 9, EXIT_INTR = 10 };
enum { EXIT_INTERNAL_ERROR = 17, EXIT_RDMSR = 29, EXIT_WRMSR = 30 };
/* The offsets of `exit_reason` and of the union in `kvm_run`, and the part of the mapping that is read. */
enum { REASON = 8, UNION = 32, MAPPED = 2 * PAGE };

/* The observer writes the path of its folder here, before the program loads the library. */
enum { PATH = 96 };
EXPORT const volatile char vmm_observe_folder[PATH] = "vmm-observe-folder:";

/* The largest number of descriptors whose meaning is known. */
enum { DESCRIPTORS = 1 << 20 };
/*
 * The meaning of a descriptor: unknown, nothing that is recorded, a VM with its number above these bits, the place of a
 * vCPU, or /dev/kvm.
 */
enum { UNKNOWN, OTHER, VM, VCPU, SYSTEM, KIND = 7, NUMBER = 3 };
/* The number of VMs of a process that are told apart where only their calls matter. */
enum { VMS = 4096 };

/*
 * The state of a vCPU. It is in the page of its ring's head: an exit should touch few pages, because a processor that
 * comes from a guest has to look up the addresses of all of them.
 */
enum { VCPU_PLACE = 1024 };

struct vcpu {
	/* The process that it belongs to; 0 if it is released. */
	u32 owner;
	/* The descriptors of the vCPU: their number, and one of them. */
	u32 descriptors;
	int descriptor;
	u32 id;
	u32 slot;
	/* The mapping of `kvm_run`; 0 once it is gone. */
	const u8 *page;
	struct ring *ring;
	struct record *records;
	/* The number of entries. A thread that finds another number after KVM_RUN was overtaken. */
	u32 entries;
	/* A thread is in KVM_RUN; the vCPU is to be released after that. */
	u32 running, closing;
	/* The last record has no answer yet. */
	u32 open;
	/* The ring was full for so long that nothing waits for it any more. */
	u32 impatient;
	u64 noted, read;
	u64 data_offset;
	/* The reasons of exits at which the vCPU stops, a bit each. */
	u64 stop_reasons;
	u32 has_entered;
	/* The numbers of stops for refused registers and dying guests, and of those for halts. */
	u32 deaths, halts;
};

/*
 * The state of this process, in pages of its own. A child of `fork` finds only zeroes there. An exit of a usual descriptor needs
 * only the first page.
 */
struct process {
	u32 alive;
	u32 pid;
	/* The next `ioctl` is that of the C library, which only makes the system call. */
	u32 is_plain;
	/* The number of the process outside of its PID namespace. */
	u32 outer_pid;
	/* The number for VMs whose creation was not seen; 0 if there are none. */
	u32 unknown_vm;
	/* The largest known descriptor. */
	u32 highest;
	/* The number of calls that the observer heard of, by their kinds; and the log was full for too long. */
	u32 calls, changes, failures, impatient;
	/* A guest has run: of any VM since the last one was made, and below of each VM. */
	u32 has_entered;
	u64 meaning[DESCRIPTORS];
	u32 entered[VMS];
} __attribute__((aligned(PAGE)));

_Static_assert(sizeof(struct ring) <= VCPU_PLACE && VCPU_PLACE + sizeof(struct vcpu) <= PAGE, "one page");

/* The rings that this process has mapped, also one that it had before `fork`. */
static u8 *mapped[RINGS];
static struct process own;
static struct process *const self = &own;
static struct control *control;
/* The pieces of the log, and the first rings. */
static u8 *log_pieces;
static u8 *early_rings;
/* 0 at the start, 1 while a thread prepares, 2 afterwards, 3 if it failed. */
static u32 prepared;
/* The program filters its system calls (seccomp), and does not expect others. */
static u32 filtered;
/* The constructor of this library has run. */
static u32 is_started;

static u32 next_is_plain;
static int (*next_ioctl)(int, u64, void *);
static int (*next_close)(int);
static int (*next_dup)(int);
static int (*next_dup2)(int, int);
static int (*next_dup3)(int, int, int);
static int (*next_fcntl)(int, int, u64);
static int (*next_prctl)(int, ...);
static long (*next_syscall)(long, ...);

/* True if a function is in the library that has `errno`. */
static int is_in_c_library(const void *function)
{
	struct object one = {0}, other = {0};
	return function && dladdr && __errno_location && dladdr(function, &one) && dladdr((const void *)__errno_location, &other) &&
	       one.base == other.base;
}

static void find_next(void)
{
	if (!dlsym)
		return;
	next_ioctl = dlsym(RTLD_NEXT, "ioctl");
	next_is_plain = is_in_c_library((const void *)next_ioctl);
	next_close = dlsym(RTLD_NEXT, "close");
	next_dup = dlsym(RTLD_NEXT, "dup");
	next_dup2 = dlsym(RTLD_NEXT, "dup2");
	next_dup3 = dlsym(RTLD_NEXT, "dup3");
	next_fcntl = dlsym(RTLD_NEXT, "fcntl");
	next_prctl = dlsym(RTLD_NEXT, "prctl");
	next_syscall = dlsym(RTLD_NEXT, "syscall");
}

/* The functions of an exit are HOT, so that they are in one page. */
#define HOT __attribute__((hot))

HOT static int call(int fd, u64 request, void *argument)
{
	if (next_ioctl)
		return next_ioctl(fd, request, argument);
	return (int)answer(raw(SYS_ioctl, fd, request, argument));
}

/*
 * Enters the guest. The C library's `ioctl` is passed by: it is in a page whose address the processor would have to look up
 * again after the guest, which takes as long as all the rest of this library.
 */
HOT static int enter(int fd, void *argument)
{
	if (__builtin_expect(own.is_plain, 1))
		return (int)answer(raw(SYS_ioctl, fd, KVM_RUN, argument));
	return call(fd, KVM_RUN, argument);
}

/* Writes the path of a file in the observer's folder. */
static void path_of(const char *name, char *path)
{
	u32 at = 0;
	while (at < PATH - 1 && vmm_observe_folder[at]) {
		path[at] = vmm_observe_folder[at];
		at++;
	}
	while (*name)
		path[at++] = *name++;
	path[at] = 0;
}

static long open_channel(void)
{
	char path[PATH + 16];
	path_of("/channel", path);
	return raw6(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_CLOEXEC, 0, 0, 0);
}

/* Maps a part of the channel. */
static long map_channel(u64 size, u64 offset)
{
	long fd = open_channel();
	if (failed(fd))
		return fd;
	long at = map(size, PROT_READ | PROT_WRITE, MAP_SHARED, (int)fd, offset);
	raw(SYS_close, fd, 0, 0);
	return at;
}

/*
 * Asks the file system for all pages of a ring: a store to a page that it has no room for ends the program (SIGBUS). The
 * observer has asked for the other parts, and for the first rings.
 */
static int reserve_ring(int slot)
{
	if (slot < RESERVED_RINGS)
		return 1;
	long fd = load(&filtered) ? -EPERM_ : open_channel();
	if (failed(fd))
		return 0;
	long reserved = raw6(SYS_fallocate, fd, 0, (long)RINGS_AT + slot * (long)RING, RING, 0, 0);
	raw(SYS_close, fd, 0, 0);
	return !failed(reserved) || reserved == -EOPNOTSUPP_ || reserved == -ENOSYS_;
}

/* Touches the pages of a ring, because a page fault in `note` would look like an exit's. Changes nothing. */
static u8 *touched(u8 *ring)
{
	for (u32 at = 0; at < RING; at += PAGE)
		__atomic_fetch_add(ring + at, 0, __ATOMIC_RELAXED);
	return ring;
}

/*
 * Prepares all that a process needs, before it can filter its system calls. The first rings are mapped already, because a
 * program may forbid that later.
 */
static int prepare(void)
{
	long channel = map_channel(2 * PAGE, 0);
	if (failed(channel) || ((struct control *)channel)->magic != MAGIC)
		return 0;
	if (failed(raw(SYS_madvise, self, sizeof(*self), MADV_WIPEONFORK)))
		return 0;
	long log = map_channel(LOG, RINGS_AT + (u64)RINGS * RING), rings = map_channel(EARLY_RINGS * (u64)RING, RINGS_AT);
	if (failed(log))
		return 0;
	control = (struct control *)channel;
	log_pieces = (u8 *)log;
	early_rings = failed(rings) ? 0 : (u8 *)rings;
	/* A filter that the observer has, too, or has made, is none of the program's. */
	if (!(control->wants & FILTERED) && raw(SYS_prctl, PR_GET_SECCOMP, 0, 0) != 0)
		store(&filtered, 1);
	return 1;
}

/* The number of this process as the observer sees it: /proc is the observer's. */
static __attribute__((noinline)) u32 outer_pid(u32 pid)
{
	char text[16];
	u32 number = 0;
	if (!(control->wants & ISOLATED) || load(&filtered))
		return pid;
	long size = raw(SYS_readlink, "/proc/self", text, sizeof(text));
	for (long at = 0; at < size && text[at] >= '0' && text[at] <= '9'; at++)
		number = number * 10 + (u32)(text[at] - '0');
	return number ? number : pid;
}

/* Prepares the state of this process. Returns 0 if nothing is recorded. */
static __attribute__((noinline)) struct process *revive(void)
{
	if (load(&prepared) != 2) {
		/* A thread, or a handler, that comes while another one prepares does not wait. */
		if (!swap(&prepared, 0, 1))
			return 0;
		store(&prepared, prepare() ? 2 : 3);
		if (prepared != 2)
			return 0;
	}
	/* A child of a process that filters its system calls cannot ask for its number. */
	if (load(&filtered) && is_started)
		return 0;
	own.pid = (u32)raw(SYS_getpid, 0, 0, 0);
	own.outer_pid = outer_pid(own.pid);
	own.is_plain = next_is_plain;
	store(&own.alive, 1);
	return self;
}

/* The state of this process, or 0 if nothing is recorded. */
HOT static struct process *process(void)
{
	return __builtin_expect(load(&own.alive), 1) ? self : revive();
}

/* The process begins. */
__attribute__((constructor)) static void begin_process(void)
{
	find_next();
	process();
	is_started = 1;
}

/* True if the memory is that of this process, and not that of the parent of a child of `vfork`, which has its own descriptors. */
static int is_own_memory(void)
{
	return load(&filtered) || (u32)raw(SYS_getpid, 0, 0, 0) == self->pid;
}

static u32 *states(void)
{
	return (u32 *)((u8 *)control + PAGE);
}

/* The place of a ring, with all of its pages; 0 if there is no room for it. */
static u8 *ring_at(int slot)
{
	if (!reserve_ring(slot))
		return 0;
	if (early_rings && slot < EARLY_RINGS)
		return touched(early_rings + slot * (u64)RING);
	long at = load(&filtered) ? -EPERM_ : map_channel(RING, RINGS_AT + slot * (u64)RING);
	return failed(at) ? 0 : touched((u8 *)at);
}

/* Takes a free ring and maps it. Returns its number, or -1. */
static int take_ring(void)
{
	for (int slot = 0; slot < RINGS; slot++) {
		if (load(&states()[slot]) != FREE || !swap(&states()[slot], FREE, TAKEN))
			continue;
		for (u32 used = load(&control->used); used <= (u32)slot; used = load(&control->used))
			swap(&control->used, used, slot + 1);
		if (!mapped[slot])
			mapped[slot] = ring_at(slot);
		if (!mapped[slot]) {
			store(&states()[slot], FREE);
			return -1;
		}
		return slot;
	}
	return -1;
}

/*
 * Sends a message to the observer, with two descriptors if they are given. Leaves no descriptor open. Returns 0, or a
 * negative errno.
 */
static long send_message(struct message *message, const int *fds, u32 count, int tries)
{
	enum { AF_UNIX = 1, SOCK_DGRAM = 2, SOL_SOCKET = 1, SCM_RIGHTS = 1 };
	enum { SOCK_CLOEXEC = O_CLOEXEC, MSG_DONTWAIT = 0x40, MSG_NOSIGNAL = 0x4000 };
	long link = raw(SYS_socket, AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (failed(link))
		return link;
	struct {
		u16 family;
		char path[PATH + 10];
	} address = {.family = AF_UNIX};
	path_of("/link", address.path);
	struct {
		void *base;
		u64 size;
	} vector = {message, sizeof(*message)};
	struct {
		u64 size;
		int level, type;
		int fds[2];
	} rights = {24, SOL_SOCKET, SCM_RIGHTS, {count ? fds[0] : -1, count ? fds[1] : -1}};
	struct {
		void *name;
		u64 name_size;
		void *vectors;
		u64 vector_count;
		void *control;
		u64 control_size;
		u64 flags;
	} header = {&address, sizeof(address), &vector, 1, count ? &rights : 0, count ? sizeof(rights) : 0, 0};
	long sent = raw(SYS_sendmsg, link, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
	while (sent == -EAGAIN_ && --tries > 0) {
		pause_for(EAGAIN_PAUSE);
		sent = raw(SYS_sendmsg, link, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
	}
	raw(SYS_close, link, 0, 0);
	return sent;
}

/* Sends KVM's counters of a vCPU to the observer, and the vCPU, which keeps them alive. */
static void send_counters(int fd, u32 slot)
{
	enum { TRIES = 200 };
	/* A program that filters its system calls does not expect these. */
	if (load(&filtered))
		return;
	long counters = raw(SYS_ioctl, fd, KVM_GET_STATS_FD, 0);
	struct message message = {.magic = (u32)MAGIC, .ring = slot};
	int fds[2] = {(int)counters, fd};
	send_message(&message, fds, failed(counters) ? 0 : 2, TRIES);
	if (!failed(counters))
		raw(SYS_close, counters, 0, 0);
}
