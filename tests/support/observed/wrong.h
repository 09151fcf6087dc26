/* Calls that KVM refuses, pointers that are wrong, and a guest that dies. */
/* Calls that make no sense have the results that the kernel gives. */
static int garbage(void)
{
	struct machine machine = make(guest, sizeof(guest));
	int null = open("/dev/null", O_RDWR);
	int fds[] = {-1, 1 << 20, 0x7fffffff, machine.kvm, machine.vm, machine.vcpu, null, 999};
	unsigned long requests[] = {KVM_RUN, KVM_CREATE_VCPU, KVM_CREATE_VM, 0xae00, 0xaeff, 0, ~0ul, KVM_GET_REGS,
				    0xffffffff00000000ul | KVM_RUN};
	for (size_t fd = 0; fd < sizeof(fds) / sizeof(*fds); fd++)
		for (size_t request = 0; request < sizeof(requests) / sizeof(*requests); request++) {
			/* An argument that is wrong for all of these calls. */
			unsigned long argument = ~0ul - 4095;
			errno = 0;
			long result = ioctl(fds[fd], requests[request], argument);
			int error = errno;
			errno = 0;
			long right = syscall(SYS_ioctl, fds[fd], requests[request], argument);
			/* A call that made a descriptor would get another number the second time. */
			NEED((result < 0) == (right < 0) && error == errno);
		}
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	NEED(close(-1) == -1 && errno == EBADF && dup2(999, 5) == -1 && errno == EBADF);
	NEED(close_range(500, 400, 0) == -1 && errno == EINVAL);
	return 0;
}

/* KVM refuses paging without protection. The refusal changes nothing. */
static int is_refused(void)
{
	struct machine machine = make(guest, sizeof(guest));
	struct kvm_sregs right, wrong;
	NEED(ioctl(machine.vcpu, KVM_GET_SREGS, &right) == 0);
	wrong = right;
	wrong.cr0 |= 0x80000000;
	wrong.efer |= 0x500;
	for (int times = 0; times < 40; times++) {
		errno = 0;
		NEED(ioctl(machine.vcpu, KVM_SET_SREGS, &wrong) == -1 && errno == EINVAL);
	}
	NEED(ioctl(machine.vcpu, KVM_GET_SREGS, &wrong) == 0 && !memcmp(&right, &wrong, sizeof(right)));
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* Puts a vCPU into protected mode without interrupt handlers, where an undefined instruction is fatal. */
static const uint8_t fatal[] = {0x0f, 0x0b};

static void start_protected(int vcpu)
{
	struct kvm_segment code = {.limit = ~0u, .selector = 8, .type = 11, .present = 1, .db = 1, .s = 1, .g = 1}, data = code;
	struct kvm_sregs sregs;
	start(vcpu);
	NEED(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
	data.type = 3, data.selector = 16;
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr0 |= 1;
	sregs.idt.limit = 0;
	NEED(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
}

static int dies(void)
{
	struct machine machine = make(fatal, sizeof(fatal));
	start_protected(machine.vcpu);
	errno = 77;
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0 && errno == 77);
	NEED(machine.run->exit_reason == KVM_EXIT_SHUTDOWN);
	return 0;
}

/* Mistakes that KVM refuses, before a guest that runs to its end. */
static int mistakes(void)
{
	struct machine machine = make(guest, sizeof(guest));
	struct kvm_userspace_memory_region region = {
		.slot = 1, .guest_phys_addr = 0x20001, .memory_size = 0x1000, .userspace_addr = (uint64_t)machine.ram};
	struct kvm_pit_config pit = {0};
	struct kvm_sregs sregs = {.cr0 = 0x80000000};
	NEED(ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION, &region) == -1 && errno == EINVAL);
	region.guest_phys_addr = 0x8000;
	NEED(ioctl(machine.vm, KVM_SET_USER_MEMORY_REGION, &region) == -1 && errno == EEXIST);
	NEED(ioctl(machine.vm, KVM_CREATE_VCPU, 0) == -1 && errno == EEXIST);
	NEED(ioctl(machine.vm, KVM_CREATE_PIT2, &pit) == -1 && errno == ENOENT);
	NEED(ioctl(machine.vm, KVM_SET_REGS, 0) == -1 && errno == ENOTTY);
	NEED(ioctl(machine.vm, KVM_RUN, 0) == -1 && errno == ENOTTY);
	NEED(ioctl(machine.vcpu, KVM_SET_REGS, 0) == -1 && errno == EFAULT);
	NEED(ioctl(machine.vcpu, KVM_SET_SREGS, &sregs) == -1 && errno == EINVAL);
	NEED(ioctl(-1, KVM_GET_API_VERSION, 0) == -1 && errno == EBADF);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}

/* A mistake before there is a vCPU: the program ends at once, as most VMMs do. */
static int ends_early(int kvm)
{
	struct kvm_userspace_memory_region region = {.memory_size = 0xfff};
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	return vm < 0 || ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) < 0;
}

/* Pointers that are wrong, and structures that run off the end of memory, have the results that the kernel gives. */
static int pointers(void)
{
	struct machine machine = make(guest, sizeof(guest));
	char *pages = mmap(NULL, 0x2000, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	NEED(pages != MAP_FAILED && munmap(pages + 0x1000, 0x1000) == 0);
	memset(pages + 0xf00, 0x41, 0x100);
	unsigned long wrong[] = {0, 1, ~0ul, ~0ul - 4095, 1ul << 47, (unsigned long)pages + 0x1000,
				 (unsigned long)pages + 0xff8, (unsigned long)pages + 0xff0, (unsigned long)pages + 0xffc};
	unsigned long requests[] = {
		KVM_GET_REGS, KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_CPUID2, KVM_GET_CPUID2, KVM_SET_MSRS,
		KVM_GET_MSRS, KVM_GET_MSR_INDEX_LIST, KVM_GET_SUPPORTED_CPUID, KVM_SET_USER_MEMORY_REGION,
		KVM_SET_GSI_ROUTING, KVM_ENABLE_CAP, KVM_IRQFD, KVM_SET_XSAVE, KVM_SET_LAPIC, KVM_SET_SIGNAL_MASK,
		KVM_SET_PMU_EVENT_FILTER, KVM_SET_DEBUGREGS, 0x7fffae99, 0xffffae90,
	};
	int fds[] = {machine.kvm, machine.vm, machine.vcpu};
	for (size_t fd = 0; fd < sizeof(fds) / sizeof(*fds); fd++)
		for (size_t request = 0; request < sizeof(requests) / sizeof(*requests); request++)
			for (size_t argument = 0; argument < sizeof(wrong) / sizeof(*wrong); argument++) {
				errno = 0;
				long result = ioctl(fds[fd], requests[request], wrong[argument]);
				int error = errno;
				errno = 0;
				NEED(result == syscall(SYS_ioctl, fds[fd], requests[request], wrong[argument]));
				NEED(error == errno);
			}
	/* A count that is larger than the memory behind it. */
	uint32_t *count = (uint32_t *)(pages + 0xfe0);
	for (uint32_t number = 1; number; number <<= 1) {
		count[0] = count[1] = number;
		NEED(ioctl(machine.vcpu, KVM_SET_CPUID2, count) == -1 && (errno == EFAULT || errno == E2BIG || errno == ENOMEM));
		NEED(ioctl(machine.vcpu, KVM_SET_MSRS, count) <= 1);
	}
	start(machine.vcpu);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	return 0;
}
