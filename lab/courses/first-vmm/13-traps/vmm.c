/*
 * Chapter 13: what a guest can ask its VMM: CPUID, model-specific registers (MSRs) and hypercalls.
 *
 *   ./vmm IMAGE VENDOR
 *
 * CPUID leaf 0x40000000   EBX, ECX and EDX have VENDOR, a text of 12 bytes
 * MSR 0xabc               the sum: WRMSR adds a number of 64 bits, and RDMSR gives the sum
 * MSR 0xabd               RDMSR gives 0x1122334455667788; WRMSR raises #GP in the guest
 * port 0x500              4 bytes: a hypercall. The number is the value (EAX), RDI and RSI are arguments, RAX has the result
 *                           0: halt. The program ends with the status RDI (its low 7 bits)
 *                           1: print the RSI bytes at the address RDI. The result is RSI, or -14 (EFAULT) if they are not all
 *                              in the memory of the guest
 *                           others: the result is -38 (ENOSYS)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

/* The exit statuses of this program. 1 means that the host failed, and 2 a wrong command line. */
enum { HALTED = 0, TRIPLE_FAULT = 3, UNEXPECTED_EXIT = 4 };
/* handle_exit returns this if the guest goes on. */
enum { GOES_ON = -1 };
enum { SUM_MSR = 0xabc, CONSTANT_MSR = 0xabd, HYPERCALL_PORT = 0x500, HALT = 0, PRINT = 1, VENDOR_LEAF = 0x40000000 };
#define CONSTANT 0x1122334455667788
/* The memory of the guest: the image from 0x1000 on, the stack below 0xf0000, and the page tables from there on. */
enum { MEMORY_SIZE = 0x100000, ENTRY = 0x1000, TABLES = 0xf0000, PAGE = 0x1000 };
enum { DEBUG_PORT = 0xe9 };

/* The machine: descriptors, the memory of the guest, and what KVM and this program share for the vCPU. */
static int kvm, vm, vcpu;
static uint8_t *memory;
static struct kvm_run *run;

/* Ends the program with a message if a call has failed. */
static void check(int result, const char *what)
{
	if (result >= 0)
		return;
	fprintf(stderr, "vmm: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void *map(size_t size, int flags, int fd)
{
	void *start = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(start == MAP_FAILED ? -1 : 0, "mmap");
	return start;
}

/* Chapter 3: gives the guest `size` bytes of memory at a guest physical address. */
static void *add_memory(unsigned slot, uint64_t address, size_t size)
{
	void *start = map(size, MAP_PRIVATE | MAP_ANONYMOUS, -1);
	struct kvm_userspace_memory_region region = {
		.slot = slot,
		.guest_phys_addr = address,
		.memory_size = size,
		.userspace_addr = (uintptr_t)start,
	};

	check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	return start;
}

/* Chapters 2 to 4: the VM, its memory and its vCPU. */
static void create_machine(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(kvm, "/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	check(vm, "KVM_CREATE_VM");
	memory = add_memory(0, 0, MEMORY_SIZE);
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	check(vcpu, "KVM_CREATE_VCPU");

	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	check(size, "KVM_GET_VCPU_MMAP_SIZE");
	run = map(size, MAP_SHARED, vcpu);
}

/* Chapter 5: copies the file into the memory of the guest, from ENTRY on. */
static void load(const char *name)
{
	FILE *file = fopen(name, "rb");

	check(file ? 0 : -1, name);
	if (fread(memory + ENTRY, 1, TABLES - ENTRY, file) == 0 || fgetc(file) != EOF) {
		fprintf(stderr, "vmm: %s is empty, too large or no file\n", name);
		exit(1);
	}
	fclose(file);
}

/* Chapter 7: page tables that map the first 4 GiB to themselves, in pages of 2 MiB. */
static void make_page_tables(void)
{
	uint64_t *tables = (uint64_t *)(memory + TABLES);

	tables[0] = (TABLES + PAGE) | 3;
	for (uint64_t i = 0; i < 4; ++i)
		tables[512 + i] = (TABLES + (2 + i) * PAGE) | 3;
	for (uint64_t i = 0; i < 4 * 512; ++i)
		tables[2 * 512 + i] = i << 21 | 0x83;
}

/* Chapter 7: a segment of 64-bit mode. Type 11 is code, and 3 is data. */
static struct kvm_segment segment(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){ .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .limit = 0xffffffff };
}

/* Chapter 7: lets the vCPU start in long mode at ENTRY. */
static void set_long_mode(void)
{
	struct kvm_regs regs = { .rip = ENTRY, .rsp = TABLES, .rflags = 2 };
	struct kvm_sregs sregs;

	check(ioctl(vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = segment(8, 11);
	sregs.cs.l = 1;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(16, 3);
	sregs.cr3 = TABLES;
	sregs.cr4 |= 0x20;		/* PAE */
	sregs.efer |= 0x500;		/* LME, LMA */
	sregs.cr0 |= 0x80000001;	/* PG, PE */
	check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* Sets what CPUID shows. KVM answers the instruction itself, without an exit, so this comes before the guest runs. */
static void set_cpuid(const char *vendor)
{
	static struct {
		struct kvm_cpuid2 head;
		struct kvm_cpuid_entry2 leaves[256];
	} list = { .head.nent = 255 };

	check(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &list), "KVM_GET_SUPPORTED_CPUID");
	//{
	//= /*
	//=  * TODO 1: `list` has what KVM and the processor support: head.nent leaves. In the leaf whose `function` is 1, set
	//=  * bit 31 of ECX: the processor is a virtual one. Find the leaf VENDOR_LEAF, or append one to the list. Its EAX is
	//=  * VENDOR_LEAF, and EBX, ECX and EDX have 4 bytes of `vendor` each (memcpy).
	//=  */
	//= (void)vendor;
	struct kvm_cpuid_entry2 *leaf = NULL;

	for (unsigned i = 0; i < list.head.nent; ++i) {
		if (list.leaves[i].function == 1)
			list.leaves[i].ecx |= 1u << 31;
		if (list.leaves[i].function == VENDOR_LEAF)
			leaf = &list.leaves[i];
	}
	if (!leaf)
		leaf = &list.leaves[list.head.nent++];
	*leaf = (struct kvm_cpuid_entry2){ .function = VENDOR_LEAF, .eax = VENDOR_LEAF };
	memcpy(&leaf->ebx, vendor, 4);
	memcpy(&leaf->ecx, vendor + 4, 4);
	memcpy(&leaf->edx, vendor + 8, 4);
	//}
	check(ioctl(vcpu, KVM_SET_CPUID2, &list), "KVM_SET_CPUID2");
}

/* Lets accesses to the two MSRs leave the guest. KVM handles all others itself. */
static void filter_msrs(void)
{
	//{
	//= /*
	//=  * TODO 2: two calls on the VM. KVM_ENABLE_CAP switches on KVM_CAP_X86_USER_SPACE_MSR; args[0] is
	//=  * KVM_MSR_EXIT_REASON_FILTER. KVM_X86_SET_MSR_FILTER takes a struct kvm_msr_filter: its default is to allow, and
	//=  * ranges[0] has the two MSRs from SUM_MSR on, for reads and writes, with a bitmap of zeros: nothing is allowed.
	//=  */
	static uint8_t nothing_allowed[8];
	struct kvm_enable_cap exits = { .cap = KVM_CAP_X86_USER_SPACE_MSR, .args = { KVM_MSR_EXIT_REASON_FILTER } };
	struct kvm_msr_filter filter = {
		.flags = KVM_MSR_FILTER_DEFAULT_ALLOW,
		.ranges[0] = {
			.flags = KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE,
			.base = SUM_MSR,
			.nmsrs = 2,
			.bitmap = nothing_allowed,
		},
	};

	check(ioctl(vm, KVM_ENABLE_CAP, &exits), "KVM_CAP_X86_USER_SPACE_MSR");
	check(ioctl(vm, KVM_X86_SET_MSR_FILTER, &filter), "KVM_X86_SET_MSR_FILTER");
	//}
}

/* Handles RDMSR and WRMSR. If run->msr.error is 1, KVM raises #GP in the guest. */
static void access_msr(bool is_write)
{
	static uint64_t sum;

	run->msr.error = 1;
	//{
	//= /*
	//=  * TODO 3: run->msr.index is the MSR. run->msr.data has the value of a write, or takes that of a read. SUM_MSR adds and
	//=  * gives the sum; CONSTANT_MSR can only be read. Clear run->msr.error for all that is allowed.
	//=  */
	//= (void)is_write;
	//= (void)sum;
	if (run->msr.index == SUM_MSR && is_write)
		sum += run->msr.data;
	else if (run->msr.index == SUM_MSR)
		run->msr.data = sum;
	else if (run->msr.index == CONSTANT_MSR && !is_write)
		run->msr.data = CONSTANT;
	else
		return;
	run->msr.error = 0;
	//}
}

/* Prints a text of the guest. Returns its length, or -14 if it is not all in memory. */
static int64_t print(uint64_t address, uint64_t length)
{
	//{
	//= /* TODO 4: the guest chooses both numbers. Check them without an overflow: address + length can be small again. */
	//= return address + length;
	if (address > MEMORY_SIZE || length > MEMORY_SIZE - address)
		return -EFAULT;
	fwrite(memory + address, 1, length, stdout);
	fflush(stdout);
	return length;
	//}
}

/* Handles a hypercall. Returns GOES_ON, or the exit status of this program. */
static int hypercall(uint32_t number)
{
	struct kvm_regs regs;

	check(ioctl(vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
	//{
	//= /*
	//=  * TODO 5: HALT returns the low 7 bits of regs.rdi. PRINT prints; its result, or -ENOSYS for another number, goes to
	//=  * regs.rax, and KVM_SET_REGS gives the registers back to the guest.
	//=  */
	//= (void)number;
	//= (void)print;
	if (number == HALT)
		return regs.rdi & 0x7f;
	regs.rax = number == PRINT ? print(regs.rdi, regs.rsi) : -ENOSYS;
	check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
	//}
	return GOES_ON;
}

/* Chapter 9: handles an access to a port. Returns GOES_ON, or the exit status of this program. */
static int access_port(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	size_t length = (size_t)run->io.size * run->io.count;
	uint32_t number;

	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, 0xff, length);
	else if (run->io.port == DEBUG_PORT)
		fwrite(data, 1, length, stdout);
	else if (run->io.port == HYPERCALL_PORT && length == sizeof(number)) {
		memcpy(&number, data, sizeof(number));
		return hypercall(number);
	}
	fflush(stdout);
	return GOES_ON;
}

/* Chapter 8: runs the guest until it ends. Returns the exit status of this program. */
static int run_guest(void)
{
	for (;;) {
		int status = GOES_ON, result = ioctl(vcpu, KVM_RUN, 0);

		if (result < 0 && errno == EINTR)
			continue;
		check(result, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_HLT:
			return HALTED;
		case KVM_EXIT_IO:
			status = access_port();
			break;
		case KVM_EXIT_X86_RDMSR:
			access_msr(false);
			break;
		case KVM_EXIT_X86_WRMSR:
			access_msr(true);
			break;
		case KVM_EXIT_SHUTDOWN:
			fprintf(stderr, "vmm: the guest died of a triple fault\n");
			return TRIPLE_FAULT;
		default:
			fprintf(stderr, "vmm: unexpected exit: reason %u\n", run->exit_reason);
			return UNEXPECTED_EXIT;
		}
		if (status != GOES_ON)
			return status;
	}
}

int main(int argc, char **argv)
{
	if (argc != 3 || strlen(argv[2]) != 12) {
		fprintf(stderr, "usage: vmm IMAGE VENDOR, and VENDOR has 12 bytes\n");
		return 2;
	}
	create_machine();
	load(argv[1]);
	make_page_tables();
	set_long_mode();
	set_cpuid(argv[2]);
	filter_msrs();
	return run_guest();
}
