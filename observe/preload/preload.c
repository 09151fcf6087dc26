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

#include "state.h"
#include "descriptors.h"
#include "records.h"
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
	struct process *process_ = process();
	int result = call(fd, request, argument);
	if (!process_) {
		if (result >= 0 && (u32)request == KVM_CREATE_VCPU && load(&prepared) == 2)
			add(&control->unrecorded, 1);
		return result;
	}
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

/* A signal came before the entry: the program sees what KVM_RUN would have returned. */
static int interrupted(const u8 *page)
{
	*(volatile u32 *)(page + REASON) = EXIT_INTR;
	return (int)answer(-EINTR_);
}

HOT static int run(int fd, void *argument)
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
		if (begin(process_, vcpu, fd))
			return interrupted(page);
		entered = clock();
	}
	if (__builtin_expect(is_full(vcpu), 0)) {
		if (wait_for_room(vcpu))
			return interrupted(page);
		if (is_full(vcpu))
			return run_unrecorded(vcpu, fd, argument);
		vcpu->impatient = 0;
		entered = clock();
	}
	u32 entry = ++vcpu->entries;
	store(&vcpu->running, 1);
	int result = enter(fd, argument);
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

EXPORT HOT int ioctl(int fd, u64 request, void *argument)
{
	if (__builtin_expect((u32)request == KVM_RUN, 1))
		return run(fd, argument);
	if (((u32)request >> 8 & 0xff) == 0xae)
		return call_kvm(fd, request, argument);
	return call(fd, request, argument);
}

EXPORT HOT int __ioctl(int fd, u64 request, void *argument) __attribute__((alias("ioctl")));

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
	if (meaning > OTHER && to < DESCRIPTORS && is_own_memory()) {
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
