/*
 * The lower bound for `vmm run real16-42`: a static program without a language runtime. It makes the same machine with
 * the same calls to KVM in the same order, runs the same guest, and checks the result.
 *
 * It leaves out the other parts of a VMM: the command line, signals, the watchdog, devices, counters and the report.
 *
 * Build: gcc -O2 -static -o cold-start cold-start.c
 * Exit status: 0 if the guest leaves 42, otherwise the number of the step that failed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* The size of the RAM, and the addresses of the guest's code and result. */
enum { RAM = 0x100000, CODE = 0x1000, RESULT = 0x400 };

/* mov ax, 42; mov [0x400], ax; hlt */
static const uint8_t guest[] = {0xb8, 42, 0, 0xa3, 0x00, 0x04, 0xf4};

#define NEED(step, condition)                                                                                         \
	do {                                                                                                          \
		if (!(condition))                                                                                     \
			_exit(step);                                                                                  \
	} while (0)

static uint8_t *make_ram(void)
{
	/* The assignment asks for mergeable memory. */
	uint8_t *ram = mmap(NULL, RAM, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	NEED(1, ram != MAP_FAILED);
	madvise(ram, RAM, MADV_MERGEABLE);
	memcpy(ram + CODE, guest, sizeof(guest));
	return ram;
}

static int make_vm(uint8_t *ram, int *run_size)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	NEED(2, kvm >= 0);
	NEED(3, ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION);
	NEED(4, ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_USER_MEMORY) > 0);
	NEED(5, ioctl(kvm, KVM_CHECK_EXTENSION, KVM_CAP_IMMEDIATE_EXIT) > 0);
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	NEED(6, vm >= 0);
	*run_size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	NEED(7, *run_size >= (int)sizeof(struct kvm_run));
	/* KVM must not patch hypercall instructions. */
	if (ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_DISABLE_QUIRKS2) & KVM_X86_QUIRK_FIX_HYPERCALL_INSN) {
		struct kvm_enable_cap quirk = {
			.cap = KVM_CAP_DISABLE_QUIRKS2,
			.args = {KVM_X86_QUIRK_FIX_HYPERCALL_INSN},
		};
		ioctl(vm, KVM_ENABLE_CAP, &quirk);
	}
	ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000UL);
	struct kvm_userspace_memory_region slot = {.memory_size = RAM, .userspace_addr = (uintptr_t)ram};
	NEED(8, ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0);
	/* Accesses to MSRs that KVM does not know must exit. */
	struct kvm_enable_cap msrs = {
		.cap = KVM_CAP_X86_USER_SPACE_MSR,
		.args = {KVM_MSR_EXIT_REASON_UNKNOWN | KVM_MSR_EXIT_REASON_FILTER},
	};
	ioctl(vm, KVM_ENABLE_CAP, &msrs);
	return vm;
}

static void set_registers(int vcpu)
{
	struct kvm_sregs sregs;
	NEED(11, ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0);
	sregs.cs.base = 0;
	sregs.cs.selector = 0;
	NEED(12, ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0);
	struct kvm_regs regs = {.rip = CODE, .rflags = 2};
	NEED(13, ioctl(vcpu, KVM_SET_REGS, &regs) == 0);
}

/* vmm's report shows some of KVM's counters. */
static void read_counters(int vcpu)
{
	static char table[1 << 16];
	struct kvm_stats_header header;
	int stats = ioctl(vcpu, KVM_GET_STATS_FD, 0);
	if (stats >= 0 && pread(stats, &header, sizeof(header), 0) == sizeof(header)) {
		size_t size = header.num_desc * (sizeof(struct kvm_stats_desc) + header.name_size);
		NEED(18, size <= sizeof(table) && pread(stats, table, size, header.desc_offset) == (ssize_t)size);
		size_t values = header.num_desc * sizeof(uint64_t);
		NEED(19, pread(stats, table, values, header.data_offset) == (ssize_t)values);
		close(stats);
	}
}

int main(void)
{
	uint8_t *ram = make_ram();
	int run_size;
	int vm = make_vm(ram, &run_size);
	int vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	NEED(9, vcpu >= 0);
	struct kvm_run *run = mmap(NULL, run_size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	NEED(10, run != MAP_FAILED);
	int syncs = ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_SYNC_REGS) & KVM_SYNC_X86_REGS;
	if (syncs)
		run->kvm_valid_regs = KVM_SYNC_X86_REGS;
	set_registers(vcpu);

	/* vmm converts TSC ticks to time with this frequency. */
	ioctl(vcpu, KVM_GET_TSC_KHZ, 0);
	NEED(14, ioctl(vcpu, KVM_RUN, 0) == 0);
	NEED(15, run->exit_reason == KVM_EXIT_HLT);
	struct kvm_regs regs;
	if (syncs)
		regs = run->s.regs.regs;
	else
		NEED(16, ioctl(vcpu, KVM_GET_REGS, &regs) == 0);
	read_counters(vcpu);
	uint16_t result;
	memcpy(&result, ram + RESULT, sizeof(result));
	NEED(17, (regs.rax & 0xffff) == 42 && result == 42);
	return 0;
}
