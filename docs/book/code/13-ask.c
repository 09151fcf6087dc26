/* ANCHOR: all */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { SIZE = 0x8000, START = 0x1000 };

/* ANCHOR: code */
static const uint8_t ask_cpuid[] = {
	0x66, 0x31, 0xc0,				/* xor eax, eax: leaf 0 */
	0x0f, 0xa2,					/* cpuid */
	0xf4,						/* hlt */
};
static const uint8_t ask_msr[] = {
	0x66, 0xb9, 0x45, 0x23, 0x01, 0x00,		/* mov ecx, 0x12345: no processor has this MSR */
	0x0f, 0x32,					/* rdmsr */
	0xf4,						/* hlt */
};
/* ANCHOR_END: code */

static int kvm, vm, vcpu;
static uint8_t *memory;
static struct kvm_run *run;

static void check(int result, const char *what)
{
	if (result < 0) {
		perror(what);
		exit(1);
	}
}

static void *map(size_t size, int flags, int fd)
{
	void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(start == MAP_FAILED ? -1 : 0, "mmap");
	return start;
}

static void create(void)
{
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	check(vm, "KVM_CREATE_VM");
	memory = map(SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_userspace_memory_region region = { .memory_size = SIZE, .userspace_addr = (uintptr_t)memory };

	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	check(vcpu, "KVM_CREATE_VCPU");
	run = map(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), MAP_SHARED, vcpu);
}

/* Sets the registers, and enters the guest. */
static void start(const uint8_t *code, size_t size)
{
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = START, .rflags = 2 };

	memcpy(memory + START, code, size);
	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
}

/* ANCHOR: cpuid */
static void set_cpuid(void)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 leaves[256];
	} list = { .head.nent = 256 };

	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &list), "KVM_GET_SUPPORTED_CPUID");
	check(ioctl(vcpu, KVM_SET_CPUID2, &list), "KVM_SET_CPUID2");
}

static void print_vendor(void)
{
	struct kvm_regs regs;

	start(ask_cpuid, sizeof(ask_cpuid));
	check(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("reason %u, the vendor is '%.4s%.4s%.4s'\n", run->exit_reason, (char *)&regs.rbx, (char *)&regs.rdx,
	       (char *)&regs.rcx);
}
/* ANCHOR_END: cpuid */

/* ANCHOR: msr */
static void answer_msr(void)
{
	struct kvm_enable_cap exits = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_UNKNOWN } };
	struct kvm_regs regs;

	check(ioctl(vm, KVM_ENABLE_CAP, &exits), "KVM_CAP_X86_USER_SPACE_MSR");
	start(ask_msr, sizeof(ask_msr));
	while (run->exit_reason == KVM_EXIT_X86_RDMSR) {
		printf("reason %u, RDMSR 0x%x\n", run->exit_reason, run->msr.index);
		run->msr.data = 42;
		run->msr.error = 0;
		check(ioctl(vcpu, KVM_RUN, 0), "KVM_RUN");
	}
	check(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	printf("reason %u, EAX is %llu\n", run->exit_reason, regs.rax);
}
/* ANCHOR_END: msr */

int main(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(kvm, "/dev/kvm");
	/* ANCHOR: main */
	create();
	print_vendor();			/* nothing is set */
	create();
	set_cpuid();
	print_vendor();
	create();
	answer_msr();
	/* ANCHOR_END: main */
	return 0;
}
/* ANCHOR_END: all */
