// ANCHOR: all
// A VMM that gives up its rights before the guest runs: ./19-filter [attack]
//
// With "attack" it behaves as if the guest had taken it over: it tries to open a file.
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/kvm.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RAM_SIZE = 0x10000 };

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

// ANCHOR: limits
// No core file with the memory of the guest, and at most 2 seconds of processor time.
static void set_limits(void)
{
	struct rlimit none = { 0, 0 }, seconds = { 2, 2 };
	need(setrlimit(RLIMIT_CORE, &none) == 0, "RLIMIT_CORE");
	need(setrlimit(RLIMIT_CPU, &seconds) == 0, "RLIMIT_CPU");
}
// ANCHOR_END: limits

// ANCHOR: filter
// From here on the kernel ends this process at every system call that is not in the list.
#define ALLOW(number) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
static void give_up_rights(void)
{
	struct sock_filter code[] = {
		// Only for the system calls of x86-64.
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		ALLOW(SYS_ioctl),
		ALLOW(SYS_write),
		ALLOW(SYS_exit_group),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	};
	struct sock_fprog program = { .len = sizeof(code) / sizeof(*code), .filter = code };
	need(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0, "PR_SET_NO_NEW_PRIVS");
	need(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0, "PR_SET_SECCOMP");
}
// ANCHOR_END: filter

int main(int argc, char **argv)
{
	// mov si, 0x100b; next: lodsb; out 0xe9, al; cmp al, '\n'; jne next; hlt
	static const uint8_t code[] = { 0xbe, 0x0b, 0x10, 0xac, 0xe6, 0xe9, 0x3c, '\n', 0x75, 0xf9, 0xf4, 'h', 'e', 'l', 'l', 'o', '\n' };
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	uint8_t *ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	memcpy(ram + 0x1000, code, sizeof(code));
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	struct kvm_run *run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "kvm_run");
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	sregs.cs.base = sregs.cs.selector = 0;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = 0x1000, .rsp = 0xf000, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");

	// ANCHOR: run
	close(kvm);
	set_limits();
	give_up_rights();
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) != 0)
			_exit(1);
		if (run->exit_reason == KVM_EXIT_HLT)
			break;
		if (run->exit_reason != KVM_EXIT_IO || write(1, (uint8_t *)run + run->io.data_offset, 1) != 1)
			_exit(1);
	}
	if (argc > 1 && strcmp(argv[1], "attack") == 0)
		open("/etc/passwd", O_RDONLY);
	_exit(0);
	// ANCHOR_END: run
}
// ANCHOR_END: all
