/*
 * Chapter 9: devices at ports and at addresses.
 *
 *   ./vmm IMAGE
 *
 * port 0x30   the sum: a write adds its value, and a read gives the low bytes of the sum
 * port 0x31   the sequence: each element that is read is the next number: 0, 1, 2 and so on
 * port 0xe9   the console: prints all bytes that are written
 * 0x200000    the register: 8 bytes of memory, for loads and stores of 1, 2, 4 and 8 bytes at any offset
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
/* The devices: two ports, and a range of addresses. */
enum { SUM = 0x30, SEQUENCE = 0x31, REGISTER = 0x200000, REGISTER_SIZE = 8 };
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

/* What the devices remember. */
static uint32_t sum, next_number;
static uint8_t device_register[REGISTER_SIZE];

/* Returns what one element of a read at this port gives. */
static uint32_t read_port(uint16_t port)
{
	//{
	//= /* TODO 1: SUM gives the sum. SEQUENCE gives the next number, and then counts. */
	//= (void)sum;
	//= (void)next_number;
	if (port == SUM)
		return sum;
	if (port == SEQUENCE)
		return next_number++;
	//}
	fprintf(stderr, "vmm: no device for a read at port 0x%x\n", port);
	return 0xffffffff;
}

/* Handles one element of a write at this port: a value of `size` bytes. */
static void write_port(uint16_t port, uint32_t value, size_t size)
{
	//{
	//= /* TODO 2: SUM adds the value. DEBUG_PORT prints all bytes of the value, and not only the first one. */
	//= if (port == DEBUG_PORT)
		//= fwrite(&value, 1, 1, stdout);
	if (port == SUM)
		sum += value;
	else if (port == DEBUG_PORT)
		fwrite(&value, 1, size, stdout);
	//}
	else
		fprintf(stderr, "vmm: no device for a write of %zu bytes at port 0x%x\n", size, port);
	fflush(stdout);
}

/* Handles an access to a port. */
static void access_port(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	uint32_t value = 0;

	//{
	//= /*
	//=  * TODO 3: this handles one byte. An exit has run->io.count elements of run->io.size bytes (1, 2 or 4), one after the
	//=  * other at `data`. Hand each element to write_port, or fill it from read_port. Bytes of `value` that an element
	//=  * does not have must be 0.
	//=  */
	//= if (run->io.direction == KVM_EXIT_IO_OUT) {
		//= value = data[0];
		//= write_port(run->io.port, value, 1);
	//= } else {
		//= data[0] = read_port(run->io.port);
	//= }
	for (uint32_t i = 0; i < run->io.count; ++i, data += run->io.size) {
		value = 0;
		if (run->io.direction == KVM_EXIT_IO_OUT) {
			memcpy(&value, data, run->io.size);
			write_port(run->io.port, value, run->io.size);
		} else {
			value = read_port(run->io.port);
			memcpy(data, &value, run->io.size);
		}
	}
	//}
}

/* Handles an access to an address without memory. */
static void access_address(void)
{
	uint64_t offset = run->mmio.phys_addr - REGISTER;
	uint32_t length = run->mmio.len;

	if (offset >= REGISTER_SIZE || length > REGISTER_SIZE - offset) {
		fprintf(stderr, "vmm: no device for %u bytes at 0x%llx\n", length, run->mmio.phys_addr);
		memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
		return;
	}
	//{
	//= /*
	//=  * TODO 4: a store (run->mmio.is_write) copies `length` bytes from run->mmio.data to the register at `offset`. A load
	//=  * copies them from there.
	//=  */
	//= (void)device_register;
	if (run->mmio.is_write)
		memcpy(device_register + offset, run->mmio.data, length);
	else
		memcpy(run->mmio.data, device_register + offset, length);
	//}
}

/* Chapter 8: runs the guest until it ends. Returns the exit status of this program. */
static int run_guest(void)
{
	for (;;) {
		int result = ioctl(vcpu, KVM_RUN, 0);

		if (result < 0 && errno == EINTR)
			continue;
		check(result, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_HLT:
			return HALTED;
		case KVM_EXIT_IO:
			access_port();
			break;
		case KVM_EXIT_MMIO:
			access_address();
			break;
		case KVM_EXIT_SHUTDOWN:
			fprintf(stderr, "vmm: the guest died of a triple fault\n");
			return TRIPLE_FAULT;
		default:
			fprintf(stderr, "vmm: unexpected exit: reason %u\n", run->exit_reason);
			return UNEXPECTED_EXIT;
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: vmm IMAGE\n");
		return 2;
	}
	create_machine();
	load(argv[1]);
	make_page_tables();
	set_long_mode();
	return run_guest();
}
