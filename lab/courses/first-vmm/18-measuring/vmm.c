// Chapter 18: measuring. Usage: ./vmm IMAGE [TEXT]
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. TEXT is at 0x8000, with a zero byte at its end.
// The guest prints bytes to port 0xE9 and ends with HLT. It can also print a block of its memory: a 32-bit write to port
// 0x30 is the address of the block, and one to port 0x34 is its length, and prints it.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { RAM_SIZE = 0x200000, ENTRY = 0x1000, STACK = 0x100000, PML4 = 0x1f0000, PDPT = 0x1f1000, PD = 0x1f2000 };
enum { PRESENT = 1, WRITABLE = 2, LARGE = 0x80 };
enum { TEXT = 0x8000, PRINT = 0xe9, BLOCK_ADDRESS = 0x30, BLOCK_LENGTH = 0x34 };

static uint8_t *ram;
static int vcpu;
static struct kvm_run *run;
static uint32_t block_address;

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void create_machine(void)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	int vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "kvm_run");
}

static void load(const char *path)
{
	FILE *file = fopen(path, "rb");
	need(file != NULL, path);
	size_t length = fread(ram + ENTRY, 1, STACK - 0x1000 - ENTRY, file);
	need(length > 0, path);
	fclose(file);
}

// One table of each level: the first GiB is mapped one to one, with pages of 2 MiB.
static void set_page_tables(void)
{
	uint64_t *pml4 = (uint64_t *)(ram + PML4), *pdpt = (uint64_t *)(ram + PDPT), *pd = (uint64_t *)(ram + PD);

	pml4[0] = PDPT | WRITABLE | PRESENT;
	pdpt[0] = PD | WRITABLE | PRESENT;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = i << 21 | LARGE | WRITABLE | PRESENT;
}

static void set_registers(void)
{
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	struct kvm_segment code = { .limit = ~0u, .selector = 8, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = 16, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	sregs.cs = code;
	sregs.ds = sregs.es = sregs.fs = sregs.gs = sregs.ss = data;
	sregs.cr3 = PML4;
	sregs.cr4 = 1 << 5;
	sregs.cr0 = 0x80000011;
	sregs.efer = 1 << 8 | 1 << 10;
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	struct kvm_regs regs = { .rip = ENTRY, .rsp = STACK, .rflags = 2 };
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

// The memory of the guest at an address, or NULL if the range is not inside of its memory.
static void *guest(uint64_t address, uint64_t size)
{
	return size <= RAM_SIZE && address <= RAM_SIZE - size ? ram + address : NULL;
}

// Prints a block of the guest's memory.
static void print_block(uint32_t address, uint32_t length)
{
	void *block = guest(address, length);
	if (!block) {
		fprintf(stderr, "vmm: the block at %#x with %u bytes is outside of the memory\n", address, length);
		exit(1);
	}
	fwrite(block, 1, length, stdout);
}

static void port_write(uint16_t port, uint32_t value, unsigned size)
{
	if (port == PRINT && size == 1)
		putchar(value);
	//{
	else if (port == BLOCK_ADDRESS && size == 4)
		block_address = value;
	else if (port == BLOCK_LENGTH && size == 4)
		print_block(block_address, value);
	//= // TODO 1: A 4-byte write to BLOCK_ADDRESS is the address of a block: keep it in block_address. A 4-byte write to
	//= // BLOCK_LENGTH is its length: call print_block.
	//= (void)print_block, (void)block_address;
	//}
}

static void port_access(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;

	for (uint32_t i = 0; i < run->io.count; i++, data += run->io.size) {
		uint32_t value = 0;
		if (run->io.direction == KVM_EXIT_IO_IN) {
			memset(data, 0, run->io.size);
			continue;
		}
		memcpy(&value, data, run->io.size);
		port_write(run->io.port, value, run->io.size);
	}
}

int main(int argc, char **argv)
{
	if (argc != 2 && argc != 3) {
		fprintf(stderr, "usage: ./vmm IMAGE [TEXT]\n");
		return 1;
	}
	create_machine();
	load(argv[1]);
	if (argc == 3) {
		need(strlen(argv[2]) < 4096, "TEXT must be shorter than 4096 bytes");
		strcpy((char *)ram + TEXT, argv[2]);
	}
	set_page_tables();
	set_registers();
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			port_access();
			break;
		case KVM_EXIT_HLT:
			return 0;
		default:
			fprintf(stderr, "vmm: unexpected exit, reason %u\n", run->exit_reason);
			return 2;
		}
	}
}
