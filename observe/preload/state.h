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

/* The state of this process. A child of `fork` finds only zeroes. */
struct process {
	u32 alive;
	u32 pid;
	/* The number for VMs whose creation was not seen; 0 if there are none. */
	u32 unknown_vm;
	/* The largest known descriptor. */
	u32 highest;
	/* The number of calls that the observer heard of, by their kinds; and the log was full for too long. */
	u32 calls, changes, failures, impatient;
	/* A guest has run: of any VM since the last one was made, and below of each VM. */
	u32 has_entered;
	/* In the first page for the usual numbers: an exit should not touch another one. */
	u64 meaning[DESCRIPTORS];
	u32 entered[VMS];
};

_Static_assert(sizeof(struct ring) <= VCPU_PLACE && VCPU_PLACE + sizeof(struct vcpu) <= PAGE, "one page");

/* The rings that this process has mapped, also one that it had before `fork`. */
static u8 *mapped[RINGS];
static struct process *self;
static struct control *control;
/* The pieces of the log. */
static u8 *log_pieces;
/* 0 at the start, 1 while a thread prepares, 2 afterwards, 3 if it failed. */
static u32 prepared;
/* The program filters its system calls (seccomp), and does not expect others. */
static u32 filtered;

static int (*next_ioctl)(int, u64, void *);
static int (*next_close)(int);
static int (*next_dup)(int);
static int (*next_dup2)(int, int);
static int (*next_dup3)(int, int, int);
static int (*next_fcntl)(int, int, u64);
static int (*next_prctl)(int, ...);
static long (*next_syscall)(long, ...);

__attribute__((constructor)) static void find_next(void)
{
	if (!dlsym)
		return;
	next_ioctl = dlsym(RTLD_NEXT, "ioctl");
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

/*
 * Maps a part of the channel. Of a ring, the file system must have all pages: a store to a page that it has no room for ends
 * the program (SIGBUS). The observer has asked for the other parts.
 */
static long map_channel(u64 size, u64 offset, int flags, int is_ring)
{
	char path[PATH + 16];
	path_of("/channel", path);
	long fd = raw6(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_CLOEXEC, 0, 0, 0);
	if (failed(fd))
		return fd;
	long reserved = is_ring && !load(&filtered) ? raw6(SYS_fallocate, fd, 0, (long)offset, (long)size, 0, 0) : 0;
	if (failed(reserved) && reserved != -EOPNOTSUPP_ && reserved != -ENOSYS_) {
		raw(SYS_close, fd, 0, 0);
		return reserved;
	}
	long at = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, (int)fd, offset);
	raw(SYS_close, fd, 0, 0);
	return at;
}

static int prepare(void)
{
	long channel = map_channel(2 * PAGE, 0, MAP_POPULATE, 0);
	if (failed(channel) || ((struct control *)channel)->magic != MAGIC)
		return 0;
	long state = map(sizeof(struct process), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (failed(state) || failed(raw(SYS_madvise, state, sizeof(struct process), MADV_WIPEONFORK)))
		return 0;
	long log = map_channel(LOG, 2 * PAGE + (u64)RINGS * RING, 0, 0);
	if (failed(log))
		return 0;
	control = (struct control *)channel;
	log_pieces = (u8 *)log;
	/* A filter that the observer has, too, is none of the program's. */
	if (!(control->wants & FILTERED) && raw(SYS_prctl, PR_GET_SECCOMP, 0, 0) != 0)
		store(&filtered, 1);
	store(&self, (struct process *)state);
	return 1;
}

/* The state of this process, or 0 if nothing is recorded. */
HOT static struct process *process(void)
{
	if (__builtin_expect(load(&prepared) != 2, 0)) {
		/* A thread, or a handler, that comes while another one prepares does not wait. */
		if (!swap(&prepared, 0, 1))
			return 0;
		store(&prepared, prepare() ? 2 : 3);
		if (prepared != 2)
			return 0;
	}
	struct process *process = self;
	if (__builtin_expect(!process->alive, 0)) {
		process->pid = (u32)raw(SYS_getpid, 0, 0, 0);
		store(&process->alive, 1);
	}
	return process;
}

static u32 *states(void)
{
	return (u32 *)((u8 *)control + PAGE);
}

/* Takes a free ring and maps it. Returns its number, or -1. */
static int take_ring(void)
{
	for (int slot = 0; slot < RINGS; slot++) {
		if (load(&states()[slot]) != FREE || !swap(&states()[slot], FREE, TAKEN))
			continue;
		for (u32 used = load(&control->used); used <= (u32)slot; used = load(&control->used))
			swap(&control->used, used, slot + 1);
		if (!mapped[slot]) {
			/* All pages at once, because a page fault in `note` would look like an exit's. */
			long at = map_channel(RING, 2 * PAGE + (u64)slot * RING, MAP_POPULATE, 1);
			if (failed(at)) {
				store(&states()[slot], FREE);
				return -1;
			}
			mapped[slot] = (u8 *)at;
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
