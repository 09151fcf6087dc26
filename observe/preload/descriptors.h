/* The meaning of descriptors: which of them is /dev/kvm, a VM, or a vCPU. */

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
	long page = fd < DESCRIPTORS ? map(MAPPED, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : -1;
	int slot = failed(page) ? -1 : take_ring();
	if (slot < 0) {
		add(&control->unrecorded, 1);
		if (!failed(page))
			raw(SYS_munmap, page, MAPPED, 0);
		know(process, fd, OTHER);
		return 0;
	}
	if (!load(&filtered))
		raw(SYS_madvise, page, MAPPED, MADV_DONTFORK);
	struct ring *ring = (struct ring *)mapped[slot];
	struct vcpu *vcpu = (struct vcpu *)(mapped[slot] + VCPU_PLACE);
	*vcpu = (struct vcpu){.owner = process->pid, .descriptors = 1, .descriptor = fd, .id = id, .slot = (u32)slot,
			      .page = (const u8 *)page, .ring = ring, .records = (struct record *)((u8 *)ring + PAGE),
			      .stop_reasons = 1 << EXIT_SHUTDOWN | 1 << EXIT_FAIL_ENTRY | 1 << EXIT_INTERNAL_ERROR};
	if (control->wants & STOP_HALT)
		vcpu->stop_reasons |= 1 << EXIT_HLT;
	*ring = (struct ring){.pid = process->outer_pid, .vm = vm, .vcpu = id};
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
	/* A filter of the program may forbid this. The page then stays to the end of the process. */
	if (!load(&filtered))
		raw(SYS_munmap, page, MAPPED, 0);
	store(&vcpu->owner, 0);
	store(&states()[vcpu->slot], CLOSED);
}

/* The process ends. Its rings are for others. */
__attribute__((destructor)) static void release_all(void)
{
	if (load(&prepared) != 2 || !self->alive || !is_own_memory())
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
	return !load(&filtered) && raw6(SYS_kcmp, process->pid, process->pid, KCMP_FILE, fd, other, 0) == 0;
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
	if (load(&filtered)) {
		know(process, fd, OTHER);
		add(&control->unrecorded, 1);
		return 0;
	}
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
	if (!is_own_memory())
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
