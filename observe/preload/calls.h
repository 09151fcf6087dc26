/* The calls other than KVM_RUN that the observer hears of. */

/* The largest numbers of calls of a process: before the guest runs, of later changes, and of later failures. */
enum { MOST_CALLS = 4096, MOST_CHANGES = 1 << 16, MOST_FAILURES = 256 };

/* True for calls that change memory slots, or create something. */
static int is_change(u32 request)
{
	switch (request & 0xff) {
	case 0x01: /* KVM_CREATE_VM */
	case 0x41: /* KVM_CREATE_VCPU */
	case 0x46: /* KVM_SET_USER_MEMORY_REGION */
	case 0x49: /* KVM_SET_USER_MEMORY_REGION2 */
	case 0x60: /* KVM_CREATE_IRQCHIP */
	case 0x64: /* KVM_CREATE_PIT */
	case 0x77: /* KVM_CREATE_PIT2 */
	case 0xd4: /* KVM_CREATE_GUEST_MEMFD */
	case 0xe0: /* KVM_CREATE_DEVICE */
		return 1;
	}
	return 0;
}

static u32 *entered(struct process *process, u32 vm)
{
	return &process->entered[vm % VMS];
}

/* True if the guest of an object has not run yet. */
static int is_building(struct process *process, u64 meaning)
{
	struct vcpu *vcpu = vcpu_in(meaning);
	if (vcpu)
		return !vcpu->has_entered;
	return (meaning & KIND) == VM ? !load(entered(process, (u32)(meaning >> NUMBER))) : !load(&process->has_entered);
}

/* Counts a call up to a limit. */
static int is_within(u32 *count, u32 most)
{
	if (load(count) < most) {
		add(count, 1);
		return 1;
	}
	add(&control->lost_calls, 1);
	return 0;
}

/* True if the observer should hear of a call with this result. */
static inline int is_told(struct process *process, u64 meaning, u32 request, int code)
{
	if (code == -EINTR_ || code == -EAGAIN_ || (code >= 0 && (meaning & KIND) <= OTHER))
		return 0;
	if (is_change(request) && code >= 0)
		return is_within(&process->changes, MOST_CHANGES);
	if (is_building(process, meaning))
		return is_within(&process->calls, MOST_CALLS);
	return code < 0 && is_within(&process->failures, MOST_FAILURES);
}

/* Tells the observer of a call. If KVM refused the registers of a vCPU, waits for its answer. */
static __attribute__((noinline)) void tell(struct process *process, int fd, u64 meaning, u32 request, u64 argument, int code)
{
	struct vcpu *vcpu = vcpu_in(meaning);
	struct entry entry = {.kind = CALLED, .target = ON_SYSTEM, .request = request, .result = code, .argument = argument};
	if (vcpu) {
		u32 number = request & 0xff;
		entry.target = ON_VCPU;
		entry.vm = vcpu->ring->vm;
		entry.vcpu = vcpu->id;
		/* KVM_SET_REGS, KVM_SET_SREGS and KVM_SET_SREGS2. */
		if (code < 0 && (number == 0x82 || number == 0x84 || number == 0xcd)) {
			entry.kind = REFUSED;
			if (stop(process, vcpu, fd, &entry, 0) != NOT_STOPPED)
				return;
			entry.kind = CALLED;
		}
	} else if ((meaning & KIND) == VM) {
		entry.target = ON_VM;
		entry.vm = (u32)(meaning >> NUMBER);
	}
	append(process, &entry, 0, 0);
}

/* The meaning of a descriptor after a call with this result. */
static u64 meaning_after(struct process *process, int fd, u32 request, int code)
{
	u64 meaning = fd >= 0 && fd < DESCRIPTORS ? load(&process->meaning[fd]) : OTHER;
	if (__builtin_expect(meaning != UNKNOWN, 1))
		return meaning;
	/* KVM refuses a process that did not make the VM, such as a child of `fork`. */
	if (code == -EIO_)
		return OTHER;
	if (!load(&filtered))
		return identify(process, fd);
	/* The numbers of the requests to /dev/kvm are below 0x40. */
	if (code >= 0 && (request & 0xff) < 0x40)
		know(process, fd, SYSTEM);
	return code >= 0 && (request & 0xff) < 0x40 ? SYSTEM : OTHER;
}

/* The vCPU enters its guest for the first time. Returns 1 if a signal came meanwhile. */
static __attribute__((noinline)) int begin(struct process *process, struct vcpu *vcpu, int fd)
{
	vcpu->has_entered = 1;
	store(entered(process, vcpu->ring->vm), 1);
	store(&process->has_entered, 1);
	struct entry entry = {.kind = FIRST_ENTRY};
	return load(&control->wants) & STOP_ENTRY && stop(process, vcpu, fd, &entry, 0) == INTERRUPTED;
}

/* KVM_RUN returned with an exit that the observer wants to see first. The time that this takes is not counted. */
static __attribute__((noinline)) void stop_at_exit(struct process *process, struct vcpu *vcpu, int fd, struct record *record)
{
	if (record->result == -EINTR_ || record->result == -EAGAIN_)
		return;
	struct entry entry = {.kind = EXITED};
	u64 before = clock();
	stop(process, vcpu, fd, &entry, record);
	u64 waited = clock() - before;
	record->entered += waited;
	record->left += waited;
}
