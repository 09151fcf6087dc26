/* Programs that filter their system calls (seccomp). */
/* A program that does not expect to make a socket, and would be killed. */
static int filters(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(*code), .filter = code};
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
	return plain();
}

/* Filters its system calls so that any that it does not make by itself kills it, once its vCPU exists. */
static int filters_late(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {.len = sizeof(code) / sizeof(*code), .filter = code};
	struct machine machine = make(guest, sizeof(guest));
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	NEED(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) == 0);
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	memcpy((char *)machine.ram + 0x1000, fatal, sizeof(fatal));
	start_protected(machine.vcpu);
	struct kvm_sregs sregs = {.cr0 = 0x80000000};
	NEED(ioctl(machine.vcpu, KVM_SET_SREGS, &sregs) == -1 && errno == EINVAL);
	NEED(ioctl(machine.vcpu, KVM_RUN, 0) == 0 && machine.run->exit_reason == KVM_EXIT_SHUTDOWN);
	_exit(0);
}

/*
 * Filters its system calls before its first call to KVM, so that it may make only those that a VMM needs. Any other one, such as
 * openat, readlink, getpid or munmap, kills it.
 */
static int filters_early(int fork_too)
{
	static const int allowed[] = {SYS_ioctl, SYS_mmap, SYS_exit_group, SYS_write, SYS_clone, SYS_wait4, SYS_set_robust_list,
				      SYS_rseq, SYS_close};
	enum { COUNT = sizeof(allowed) / sizeof(*allowed) };
	struct sock_filter code[COUNT + 3] = {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr))};
	for (int index = 0; index < COUNT; index++)
		code[index + 1] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, allowed[index], COUNT - index, 0);
	code[COUNT + 1] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS);
	code[COUNT + 2] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
	struct sock_fprog filter = {.len = COUNT + 3, .filter = code};
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(kvm >= 0 && prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	NEED(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter) == 0);
	struct machine machine = make_on(kvm, guest, sizeof(guest));
	NEED(run_on(machine.vcpu, machine.run) == EXITS);
	NEED(close(machine.vcpu) == 0);
	if (fork_too) {
		pid_t child = fork();
		if (child == 0) {
			machine = make_on(kvm, guest, sizeof(guest));
			NEED(run_on(machine.vcpu, machine.run) == EXITS);
			exit(0);
		}
		NEED(wait_for(child) == 0);
	}
	return 0;
}

/* A filter that forbids what every VMM needs, so that this one is killed also without an observer. */
static int filters_all(void)
{
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS)};
	struct sock_fprog filter = {.len = 1, .filter = code};
	NEED(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter);
	return open("/dev/kvm", O_RDWR);
}
