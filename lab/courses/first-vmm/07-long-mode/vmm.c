/*
 * Chapter 7: a guest in long mode, with page tables.
 *
 *   ./vmm IMAGE           loads the file at 0x1000, and runs it there as 64-bit code
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MEMORY_SIZE = 0x400000, ENTRY = 0x1000, DEBUG_PORT = 0xe9 };

struct vm {
	int kvm, fd;
	uint8_t *memory;
};

struct vcpu {
	int fd;
	struct kvm_run *run;
};

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
	void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, fd, 0);

	check(memory == MAP_FAILED ? -1 : 0, "mmap");
	return memory;
}

/* Makes a VM with MEMORY_SIZE bytes at the guest physical address 0. */
static struct vm create_vm(void)
{
	struct vm vm;

	vm.kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	check(vm.kvm, "/dev/kvm");
	vm.fd = ioctl(vm.kvm, KVM_CREATE_VM, 0);
	check(vm.fd, "KVM_CREATE_VM");
	vm.memory = map(MEMORY_SIZE, MAP_PRIVATE | MAP_ANONYMOUS, -1);

	struct kvm_userspace_memory_region region = { .memory_size = MEMORY_SIZE, .userspace_addr = (uintptr_t)vm.memory };

	check(ioctl(vm.fd, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	return vm;
}

static struct vcpu create_vcpu(const struct vm *vm)
{
	struct vcpu vcpu;
	int size = ioctl(vm->kvm, KVM_GET_VCPU_MMAP_SIZE, 0);

	check(size, "KVM_GET_VCPU_MMAP_SIZE");
	vcpu.fd = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	check(vcpu.fd, "KVM_CREATE_VCPU");
	vcpu.run = map(size, MAP_SHARED, vcpu.fd);
	return vcpu;
}

enum { CR0_PE = 1, CR4_PAE = 0x20, EFER_LME = 0x100, EFER_LMA = 0x400 };
#define CR0_PG 0x80000000u
enum { TYPE_CODE = 11, TYPE_DATA = 3 };

/* The page tables stand behind the code. Each has 512 entries of 8 bytes. */
enum { PML4 = 0x10000, PDPT = 0x11000, PD_LOW = 0x12000, PD_HIGH = 0x13000 };
enum { PRESENT = 1, WRITABLE = 2, LARGE_PAGE = 0x80, LARGE_PAGE_SIZE = 0x200000 };

/* Copies the file into the memory of the guest, from ENTRY on. */
static void load(const struct vm *vm, const char *name)
{
	FILE *file = fopen(name, "rb");

	check(file ? 0 : -1, name);
	size_t size = fread(vm->memory + ENTRY, 1, MEMORY_SIZE - ENTRY, file);

	check(size == 0 && ferror(file) ? -1 : 0, name);
	fclose(file);
}

/* Writes an entry of the table at this guest physical address. */
static void set_entry(const struct vm *vm, uint64_t table, unsigned index, uint64_t entry)
{
	memcpy(vm->memory + table + index * sizeof(entry), &entry, sizeof(entry));
}

/* Maps the memory at the virtual address 0, and its second half at 1 GiB, too. */
static void make_page_tables(const struct vm *vm)
{
	//{
	//= (void)vm;
	//= (void)set_entry;
	//= /* TODO: PML4[0] leads to PDPT. An entry is an address, PRESENT and WRITABLE: set_entry(vm, PML4, 0, PDPT | ...). */
	set_entry(vm, PML4, 0, PDPT | PRESENT | WRITABLE);
	//= /* TODO: PDPT[0] leads to PD_LOW, and PDPT[1] to PD_HIGH. */
	set_entry(vm, PDPT, 0, PD_LOW | PRESENT | WRITABLE);
	set_entry(vm, PDPT, 1, PD_HIGH | PRESENT | WRITABLE);
	//= /* TODO: PD_LOW[0] is a large page (LARGE_PAGE) at the physical address 0, and PD_LOW[1] one at LARGE_PAGE_SIZE. */
	set_entry(vm, PD_LOW, 0, 0 | LARGE_PAGE | PRESENT | WRITABLE);
	set_entry(vm, PD_LOW, 1, LARGE_PAGE_SIZE | LARGE_PAGE | PRESENT | WRITABLE);
	//= /* TODO: PD_HIGH[0] is a large page at the physical address LARGE_PAGE_SIZE. */
	set_entry(vm, PD_HIGH, 0, LARGE_PAGE_SIZE | LARGE_PAGE | PRESENT | WRITABLE);
	//}
}

/* A segment of 64-bit mode. Its base and its limit do not count. */
static struct kvm_segment segment(uint16_t selector, uint8_t type)
{
	return (struct kvm_segment){ .selector = selector, .type = type, .present = 1, .s = 1, .g = 1, .limit = 0xffffffff };
}

/* Lets the vCPU start in long mode. */
static void set_long_mode(const struct vcpu *vcpu)
{
	struct kvm_sregs sregs;

	check(ioctl(vcpu->fd, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
	sregs.cs = segment(8, TYPE_CODE);
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = segment(16, TYPE_DATA);
	//{
	//= /* TODO: set the field l of sregs.cs to 1: it holds 64-bit code. */
	sregs.cs.l = 1;
	//= /* TODO: set sregs.cr3 to the address of the first table, PML4. */
	sregs.cr3 = PML4;
	//= /* TODO: set the bit CR4_PAE in sregs.cr4, EFER_LME and EFER_LMA in sregs.efer, CR0_PE and CR0_PG in sregs.cr0. */
	sregs.cr4 |= CR4_PAE;
	sregs.efer |= EFER_LME | EFER_LMA;
	sregs.cr0 |= CR0_PE | CR0_PG;
	//}
	check(ioctl(vcpu->fd, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
}

static void set_registers(const struct vcpu *vcpu)
{
	struct kvm_regs regs = { .rip = ENTRY, .rflags = 2, .rsp = MEMORY_SIZE };

	check(ioctl(vcpu->fd, KVM_SET_REGS, &regs), "KVM_SET_REGS");
}

/* Prints what the guest writes to the debug port. Other ports have no device. */
static void access_port(const struct kvm_run *run)
{
	const uint8_t *data = (const uint8_t *)run + run->io.data_offset;

	if (run->io.direction != KVM_EXIT_IO_OUT || run->io.port != DEBUG_PORT) {
		fprintf(stderr, "vmm: port 0x%x has no device\n", run->io.port);
		exit(1);
	}
	fwrite(data, run->io.size, run->io.count, stdout);
}

/* Runs the guest until it halts. */
static void run(const struct vcpu *vcpu)
{
	for (;;) {
		check(ioctl(vcpu->fd, KVM_RUN, 0), "KVM_RUN");
		switch (vcpu->run->exit_reason) {
		case KVM_EXIT_IO:
			access_port(vcpu->run);
			break;
		case KVM_EXIT_HLT:
			return;
		default:
			fprintf(stderr, "vmm: unexpected exit: reason %u\n", vcpu->run->exit_reason);
			exit(1);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: vmm IMAGE\n");
		return 2;
	}
	struct vm vm = create_vm();
	struct vcpu vcpu = create_vcpu(&vm);

	load(&vm, argv[1]);
	make_page_tables(&vm);
	set_long_mode(&vcpu);
	set_registers(&vcpu);
	run(&vcpu);
	return 0;
}
