/*
 * A library that stands before `ioctl` in an observed program (LD_PRELOAD). It records each return of KVM_RUN in a ring
 * of the channel, and changes nothing that the program sees: not errno, not signals, not the numbers of its descriptors.
 *
 * It needs no library, so that it loads into programs with any C library. It may be called in a handler of a signal, at
 * any time and by any thread: it has no locks, allocates nothing, and its state of a vCPU belongs to the thread that
 * entered the vCPU last. A child of `fork` begins anew, because the kernel clears `struct process` in it.
 */
#include "channel.h"
#include "system.h"

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
enum { EXIT_IO = 2, EXIT_HLT = 5, EXIT_MMIO = 6, EXIT_SHUTDOWN = 8, EXIT_FAIL_ENTRY = 9, EXIT_INTERNAL_ERROR = 17 };
enum { EXIT_RDMSR = 29, EXIT_WRMSR = 30 };
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
	/* The number of stops for refused registers and dying guests. */
	u32 deaths;
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
	/* A guest has run: of any VM since the last one was made, and of each VM. */
	u32 has_entered;
	u32 entered[VMS];
	u64 meaning[DESCRIPTORS];
};

_Static_assert(sizeof(struct ring) <= VCPU_PLACE && VCPU_PLACE + sizeof(struct vcpu) <= PAGE, "one page");

static struct process *self;
static struct control *control;
/* The pieces of the log. */
static u8 *log_pieces;
/* The rings that this process has mapped, also one that it had before `fork`. */
static u8 *mapped[RINGS];
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

static int call(int fd, u64 request, void *argument)
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

/* Maps a part of the channel. */
static long map_channel(u64 size, u64 offset, int flags)
{
	char path[PATH + 16];
	path_of("/channel", path);
	long fd = raw6(SYS_openat, AT_FDCWD, (long)path, O_RDWR | O_CLOEXEC, 0, 0, 0);
	if (failed(fd))
		return fd;
	long at = map(size, PROT_READ | PROT_WRITE, MAP_SHARED | flags, (int)fd, offset);
	raw(SYS_close, fd, 0, 0);
	return at;
}

static int prepare(void)
{
	long channel = map_channel(2 * PAGE, 0, MAP_POPULATE);
	if (failed(channel) || ((struct control *)channel)->magic != MAGIC)
		return 0;
	long state = map(sizeof(struct process), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (failed(state) || failed(raw(SYS_madvise, state, sizeof(struct process), MADV_WIPEONFORK)))
		return 0;
	long log = map_channel(LOG, 2 * PAGE + (u64)RINGS * RING, 0);
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
static struct process *process(void)
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
			long at = map_channel(RING, 2 * PAGE + (u64)slot * RING, MAP_POPULATE);
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

static struct vcpu *vcpu_in(u64 meaning)
{
	return (meaning & KIND) == VCPU ? (struct vcpu *)(meaning & ~(u64)KIND) : 0;
}

/* The vCPU of this process that has a ring, or 0. */
static struct vcpu *vcpu_at(struct process *process, int slot)
{
	struct vcpu *vcpu = mapped[slot] ? (struct vcpu *)(mapped[slot] + VCPU_PLACE) : 0;
	return vcpu && load(&vcpu->owner) == process->pid && load(&vcpu->page) ? vcpu : 0;
}

static void know(struct process *process, int fd, u64 meaning)
{
	if (fd < 0 || fd >= DESCRIPTORS)
		return;
	store(&process->meaning[fd], meaning);
	for (u32 highest = load(&process->highest); highest < (u32)fd; highest = load(&process->highest))
		swap(&process->highest, highest, (u32)fd);
}

/* Begins to record a vCPU. Returns 0 if that is not possible. */
static struct vcpu *record_vcpu(struct process *process, int fd, u32 vm, u32 id)
{
	long page = fd < DESCRIPTORS ? map(MAPPED, PROT_READ, MAP_SHARED, fd, 0) : -1;
	int slot = failed(page) ? -1 : take_ring();
	if (slot < 0) {
		add(&control->unrecorded, 1);
		if (!failed(page))
			raw(SYS_munmap, page, MAPPED, 0);
		know(process, fd, OTHER);
		return 0;
	}
	raw(SYS_madvise, page, MAPPED, MADV_DONTFORK);
	struct ring *ring = (struct ring *)mapped[slot];
	struct vcpu *vcpu = (struct vcpu *)(mapped[slot] + VCPU_PLACE);
	*vcpu = (struct vcpu){.owner = process->pid, .descriptors = 1, .descriptor = fd, .id = id, .slot = (u32)slot,
			      .page = (const u8 *)page, .ring = ring, .records = (struct record *)((u8 *)ring + PAGE),
			      .stop_reasons = 1 << EXIT_SHUTDOWN | 1 << EXIT_FAIL_ENTRY | 1 << EXIT_INTERNAL_ERROR};
	if (control->wants & STOP_HALT)
		vcpu->stop_reasons |= 1 << EXIT_HLT;
	*ring = (struct ring){.pid = process->pid, .vm = vm, .vcpu = id};
	store(&states()[slot], LIVE);
	know(process, fd, (u64)vcpu | VCPU);
	send_counters(fd, (u32)slot);
	return vcpu;
}

/* Ends the recording of a vCPU. The observer then frees the ring. */
static void release(struct vcpu *vcpu)
{
	const u8 *page = __atomic_exchange_n(&vcpu->page, (const u8 *)0, __ATOMIC_SEQ_CST);
	if (!page)
		return;
	raw(SYS_munmap, page, MAPPED, 0);
	store(&vcpu->owner, 0);
	store(&states()[vcpu->slot], CLOSED);
}

/* The process ends. Its rings are for others. */
__attribute__((destructor)) static void release_all(void)
{
	if (load(&prepared) != 2 || !self->alive || (u32)raw(SYS_getpid, 0, 0, 0) != self->pid)
		return;
	for (int slot = 0; slot < RINGS; slot++) {
		struct vcpu *vcpu = vcpu_at(self, slot);
		if (vcpu && !load(&vcpu->running))
			release(vcpu);
	}
}

/* True if both descriptors are of one open file (kcmp(2)). */
static int is_same(struct process *process, int fd, int other)
{
	enum { KCMP_FILE = 0 };
	return raw6(SYS_kcmp, process->pid, process->pid, KCMP_FILE, fd, other, 0) == 0;
}

/* The number for VMs whose creation was not seen. */
static u32 unknown_vm(struct process *process)
{
	if (!process->unknown_vm)
		process->unknown_vm = add(&control->vms, 1);
	return process->unknown_vm;
}

/* The number of the VM of a descriptor. */
static u32 vm_of(struct process *process, int fd)
{
	u64 meaning = fd >= 0 && fd < DESCRIPTORS ? load(&process->meaning[fd]) : UNKNOWN;
	if ((meaning & KIND) == VM)
		return (u32)(meaning >> NUMBER);
	for (u32 other = 0; other <= load(&process->highest); other++) {
		meaning = load(&process->meaning[other]);
		if ((meaning & KIND) == VM && is_same(process, fd, (int)other))
			break;
		meaning = 0;
	}
	if (!meaning)
		meaning = (u64)unknown_vm(process) << NUMBER | VM;
	know(process, fd, meaning);
	return (u32)(meaning >> NUMBER);
}

/* The length of a text if this begins with it, or 0. */
static u32 prefix_of(const char *name, long size, const char *text)
{
	u32 at = 0;
	while (text[at] && size > (long)at && name[at] == text[at])
		at++;
	return text[at] ? 0 : at;
}

/* Finds or records the vCPU with this descriptor and number. */
static u64 identify_vcpu(struct process *process, int fd, u32 id)
{
	/* KVM refuses a process that did not make the VM, such as a child of `fork`. */
	int state;
	if (raw(SYS_ioctl, fd, KVM_GET_MP_STATE, &state) == -EIO_)
		return OTHER;
	for (int slot = 0; slot < RINGS; slot++) {
		struct vcpu *vcpu = vcpu_at(process, slot);
		if (!vcpu || vcpu->id != id || !is_same(process, fd, vcpu->descriptor))
			continue;
		add(&vcpu->descriptors, 1);
		return (u64)vcpu | VCPU;
	}
	/* The creation of this vCPU was not seen. */
	struct vcpu *vcpu = record_vcpu(process, fd, unknown_vm(process), id);
	return vcpu ? (u64)vcpu | VCPU : OTHER;
}

/* Finds out what a descriptor is on which the program calls KVM: by its name, such as "anon_inode:kvm-vcpu:ID". */
static u64 identify(struct process *process, int fd)
{
	char path[32] = "/proc/self/fd/", name[64];
	u32 end = 14, id = 0;
	for (u32 unit = 1000000; unit; unit /= 10)
		if (unit == 1 || (u32)fd / unit)
			path[end++] = (char)('0' + (u32)fd / unit % 10);
	path[end] = 0;
	long size = raw(SYS_readlink, path, name, sizeof(name));
	if (failed(size))
		return UNKNOWN;
	u32 at = prefix_of(name, size, "anon_inode:kvm-vcpu:");
	u64 meaning = OTHER;
	if (at) {
		for (; (long)at < size && name[at] >= '0' && name[at] <= '9'; at++)
			id = id * 10 + (u32)(name[at] - '0');
		meaning = identify_vcpu(process, fd, id);
	} else if (prefix_of(name, size, "anon_inode:kvm-vm")) {
		meaning = (u64)vm_of(process, fd) << NUMBER | VM;
	} else if (prefix_of(name, size, "/dev/kvm")) {
		meaning = SYSTEM;
	}
	know(process, fd, meaning);
	return meaning;
}

/* The vCPU of a descriptor on which the program calls KVM_RUN. */
static struct vcpu *vcpu_of(struct process *process, int fd)
{
	u64 meaning = fd >= 0 && fd < DESCRIPTORS ? load(&process->meaning[fd]) : OTHER;
	if (__builtin_expect((meaning & KIND) == VCPU, 1))
		return vcpu_in(meaning);
	if (meaning != UNKNOWN)
		return 0;
	meaning = identify(process, fd);
	/* No such descriptor, unless there is no /proc, and then nothing tells what it is. */
	char name[8];
	if (meaning == UNKNOWN && failed(raw(SYS_readlink, "/proc/self/exe", name, sizeof(name))))
		add(&control->unrecorded, 1);
	return vcpu_in(meaning);
}

/* A descriptor is closed, or gets another meaning. */
static void forget(int fd)
{
	if (load(&prepared) != 2 || fd < 0 || fd >= DESCRIPTORS || !self->alive)
		return;
	u64 meaning = load(&self->meaning[fd]);
	if (meaning == UNKNOWN)
		return;
	/* The child of `vfork` has its own descriptors, but the memory of its parent. */
	if ((u32)raw(SYS_getpid, 0, 0, 0) != self->pid)
		return;
	store(&self->meaning[fd], UNKNOWN);
	struct vcpu *vcpu = vcpu_in(meaning);
	if (!vcpu)
		return;
	if (add(&vcpu->descriptors, -1u) != 0) {
		for (u32 other = 0; other <= load(&self->highest); other++)
			if (load(&self->meaning[other]) == meaning)
				vcpu->descriptor = (int)other;
		return;
	}
	__atomic_store_n(&vcpu->closing, 1, __ATOMIC_SEQ_CST);
	if (!__atomic_load_n(&vcpu->running, __ATOMIC_SEQ_CST))
		release(vcpu);
}

static inline u64 word(const u8 *page, u32 offset)
{
	return *(const volatile u64 *)(page + offset);
}

/* Copies the first 16 bytes of the data of port I/O. */
static inline void copy_data(struct record *record, const u8 *page, u64 offset)
{
	if (offset <= MAPPED - 16) {
		record->details[2] = word(page, (u32)offset);
		record->details[3] = word(page, (u32)offset + 8);
	}
}

/* Completes the last record: the program enters the vCPU again, and has answered its exit. */
static inline void complete(struct vcpu *vcpu, const u8 *page, u64 now)
{
	struct record *record = &vcpu->records[(vcpu->noted - 1) % RECORDS];
	record->answered = now;
	if (record->result >= 0) {
		if (record->reason == EXIT_IO) {
			if (!(record->details[0] & 0xff))
				copy_data(record, page, vcpu->data_offset);
		} else if (record->reason == EXIT_MMIO) {
			if (!(record->details[2] >> 32 & 0xff))
				record->details[1] = word(page, UNION + 8);
		} else if (record->reason == EXIT_RDMSR || record->reason == EXIT_WRMSR) {
			record->details[0] = word(page, UNION);
			if (record->reason == EXIT_RDMSR)
				record->details[2] = word(page, UNION + 16);
		}
	}
	vcpu->open = 0;
	store(&vcpu->ring->done, vcpu->noted);
}

/* Notes the return of KVM_RUN. Returns true if the vCPU should stop. */
static inline int note(struct vcpu *vcpu, const u8 *page, u64 entered, u64 left, int result)
{
	struct record *record = &vcpu->records[vcpu->noted % RECORDS];
	u32 reason = *(const volatile u32 *)(page + REASON);
	record->entered = entered;
	record->left = left;
	record->answered = 0;
	record->result = result;
	record->reason = reason;
	record->details[0] = word(page, UNION);
	record->details[1] = word(page, UNION + 8);
	if (reason == EXIT_IO) {
		vcpu->data_offset = record->details[1];
		copy_data(record, page, vcpu->data_offset);
	} else {
		record->details[2] = word(page, UNION + 16);
		record->details[3] = word(page, UNION + 24);
	}
	vcpu->open = 1;
	store(&vcpu->ring->noted, ++vcpu->noted);
	return result < 0 || (reason < 64 && vcpu->stop_reasons >> reason & 1);
}

static inline int is_full(struct vcpu *vcpu)
{
	if (__builtin_expect(vcpu->noted - vcpu->read < RECORDS, 1))
		return 0;
	vcpu->read = load(&vcpu->ring->read);
	return vcpu->noted - vcpu->read >= RECORDS;
}

/*
 * Waits for the observer to make room, at most for a second. Returns 1 if a signal came: then KVM_RUN would have returned,
 * too.
 */
static __attribute__((noinline)) int wait_for_room(struct vcpu *vcpu)
{
	enum { PAUSE = 200 * 1000, PAUSES = 4000 };
	for (int pauses = 0; pauses < PAUSES && !vcpu->impatient; pauses++) {
		if (load(&control->ended))
			return 0;
		if (pause_for(PAUSE) == -EINTR_)
			return 1;
		if (!is_full(vcpu))
			return 0;
	}
	vcpu->impatient = 1;
	return 0;
}

#include "log.h"
#include "calls.h"

static int run_unrecorded(struct vcpu *vcpu, int fd, void *argument)
{
	vcpu->open = 0;
	if (!load(&control->ended))
		vcpu->ring->lost++;
	return call(fd, KVM_RUN, argument);
}

/* A call to KVM other than KVM_RUN, or one that enters no known vCPU. */
static int call_kvm(int fd, u64 request, void *argument)
{
	/* Early, while the program can still open files. */
	struct process *process_ = process();
	int result = call(fd, request, argument);
	if (!process_)
		return result;
	int code = result == -1 && __errno_location ? -*__errno_location() : result;
	u64 meaning = meaning_after(process_, fd, (u32)request, code);
	if (result >= 0 && (u32)request == KVM_CREATE_VM) {
		forget(result);
		know(process_, result, (u64)add(&control->vms, 1) << NUMBER | VM);
		store(&process_->has_entered, 0);
	} else if (result >= 0 && (u32)request == KVM_CREATE_VCPU) {
		forget(result);
		record_vcpu(process_, result, vm_of(process_, fd), (u32)(u64)argument);
	}
	if (__builtin_expect(is_told(process_, meaning, (u32)request, code), 0))
		tell(process_, fd, meaning, (u32)request, (u64)argument, code);
	return result;
}

static int run(int fd, void *argument)
{
	struct process *process_ = process();
	struct vcpu *vcpu = process_ ? vcpu_of(process_, fd) : 0;
	const u8 *page = vcpu ? load(&vcpu->page) : 0;
	if (__builtin_expect(!page, 0))
		return call_kvm(fd, KVM_RUN, argument);
	u64 entered = clock();
	if (vcpu->open) {
		complete(vcpu, page, entered);
	} else if (__builtin_expect(!vcpu->has_entered, 0)) {
		begin(process_, vcpu, fd);
		entered = clock();
	}
	if (__builtin_expect(is_full(vcpu), 0)) {
		if (wait_for_room(vcpu))
			return (int)answer(-EINTR_);
		if (is_full(vcpu))
			return run_unrecorded(vcpu, fd, argument);
		vcpu->impatient = 0;
		entered = clock();
	}
	u32 entry = ++vcpu->entries;
	store(&vcpu->running, 1);
	int result = call(fd, KVM_RUN, argument);
	u64 left = clock();
	int code = result == -1 && __errno_location ? -*__errno_location() : result;
	/* A handler or another thread entered the vCPU meanwhile, and its record is the newer one. */
	if (__builtin_expect(vcpu->entries != entry, 0)) {
		if (code >= 0)
			vcpu->ring->lost++;
		return result;
	}
	page = load(&vcpu->page);
	if (page && __builtin_expect(note(vcpu, page, entered, left, code), 0))
		stop_at_exit(process_, vcpu, fd, &vcpu->records[(vcpu->noted - 1) % RECORDS]);
	store(&vcpu->running, 0);
	if (__builtin_expect(load(&vcpu->closing), 0))
		release(vcpu);
	return result;
}

EXPORT int ioctl(int fd, u64 request, void *argument)
{
	if (__builtin_expect((u32)request == KVM_RUN, 1))
		return run(fd, argument);
	if (((u32)request >> 8 & 0xff) == 0xae)
		return call_kvm(fd, request, argument);
	return call(fd, request, argument);
}

EXPORT int __ioctl(int fd, u64 request, void *argument) __attribute__((alias("ioctl")));

EXPORT int close(int fd)
{
	forget(fd);
	return next_close ? next_close(fd) : (int)answer(raw(SYS_close, fd, 0, 0));
}

/* A descriptor has become a duplicate of another one, which succeeded if it is not negative. */
static int duplicated(int from, int to)
{
	if (to < 0 || from == to || load(&prepared) != 2 || !self->alive || from < 0 || from >= DESCRIPTORS)
		return to;
	u64 meaning = load(&self->meaning[from]);
	if (meaning > OTHER && to < DESCRIPTORS && (u32)raw(SYS_getpid, 0, 0, 0) == self->pid) {
		struct vcpu *vcpu = vcpu_in(meaning);
		if (vcpu)
			add(&vcpu->descriptors, 1);
		know(self, to, meaning);
	}
	return to;
}

EXPORT int dup(int from)
{
	return duplicated(from, next_dup ? next_dup(from) : (int)answer(raw(SYS_dup, from, 0, 0)));
}

EXPORT int dup2(int from, int to)
{
	if (from != to)
		forget(to);
	return duplicated(from, next_dup2 ? next_dup2(from, to) : (int)answer(raw(SYS_dup2, from, to, 0)));
}

EXPORT int dup3(int from, int to, int flags)
{
	if (from != to)
		forget(to);
	return duplicated(from, next_dup3 ? next_dup3(from, to, flags) : (int)answer(raw(SYS_dup3, from, to, flags)));
}

EXPORT int fcntl(int fd, int command, u64 argument)
{
	enum { F_DUPFD = 0, F_DUPFD_CLOEXEC = 1030 };
	int result = next_fcntl ? next_fcntl(fd, command, argument) : (int)answer(raw(SYS_fcntl, fd, command, argument));
	return command == F_DUPFD || command == F_DUPFD_CLOEXEC ? duplicated(fd, result) : result;
}

EXPORT int fcntl64(int fd, int command, u64 argument) __attribute__((alias("fcntl")));

EXPORT int close_range(unsigned first, unsigned last, int flags)
{
	enum { CLOSE_RANGE_CLOEXEC = 4 };
	if (load(&prepared) == 2 && !(flags & CLOSE_RANGE_CLOEXEC))
		for (u64 fd = first; fd <= last && fd <= load(&self->highest); fd++)
			forget((int)fd);
	return (int)answer(raw(SYS_close_range, first, last, flags));
}

/*
 * A call that filters the system calls of the program, unless it fails: some libraries only ask in this way. From before it
 * on, the program is not made to call others. Returns the state before, for a call that fails.
 */
static u32 filters(int is_filter)
{
	u32 before = load(&filtered);
	if (is_filter)
		store(&filtered, 1);
	return before;
}

EXPORT int prctl(int option, u64 a, u64 b, u64 c, u64 d)
{
	u32 before = filters(option == PR_SET_SECCOMP);
	int result = next_prctl ? next_prctl(option, a, b, c, d)
				: (int)answer(raw6(SYS_prctl, option, (long)a, (long)b, (long)c, (long)d, 0));
	if (option == PR_SET_SECCOMP && result < 0)
		store(&filtered, before);
	return result;
}

EXPORT long syscall(long number, long a, long b, long c, long d, long e, long f)
{
	/* SECCOMP_SET_MODE_STRICT and SECCOMP_SET_MODE_FILTER. */
	int is_filter = (number == SYS_seccomp && a <= 1) || (number == SYS_prctl && a == PR_SET_SECCOMP);
	u32 before = filters(is_filter);
	long result = next_syscall ? next_syscall(number, a, b, c, d, e, f) : answer(raw6(number, a, b, c, d, e, f));
	if (is_filter && result < 0)
		store(&filtered, before);
	return result;
}
