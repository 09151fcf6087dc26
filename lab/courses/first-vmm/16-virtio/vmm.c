// Chapter 16: a virtio device. Usage: ./vmm IMAGE
//
// The VMM loads the flat file IMAGE at 0x1000 and runs it in long mode. The guest prints bytes to port 0xE9 and ends
// with HLT. At 0x10000000 it finds a virtio device over MMIO, version 2: an entropy device (4) with one queue. It fills
// buffers with random bytes.
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>

enum { RAM_SIZE = 0x200000, ENTRY = 0x1000, STACK = 0x100000, PML4 = 0x1f0000, PDPT = 0x1f1000, PD = 0x1f2000 };
enum { PRINT = 0xe9, DEVICE = 0x10000000, DEVICE_SIZE = 0x1000 };

static uint8_t *ram;
static int vcpu;
static struct kvm_run *run;

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

// Long mode, as in chapter 7. The first GiB is mapped one to one, with the device in it.
static void set_registers(void)
{
	uint64_t *pd = (uint64_t *)(ram + PD);
	*(uint64_t *)(ram + PML4) = PDPT | 3;
	*(uint64_t *)(ram + PDPT) = PD | 3;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = i << 21 | 0x83;
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

// The registers of virtio over MMIO: section 4.2.2 of virtio 1.2.
enum {
	MAGIC = 0x000, VERSION = 0x004, DEVICE_ID = 0x008, VENDOR_ID = 0x00c,
	DEVICE_FEATURES = 0x010, DEVICE_FEATURES_SEL = 0x014, DRIVER_FEATURES = 0x020, DRIVER_FEATURES_SEL = 0x024,
	QUEUE_SEL = 0x030, QUEUE_NUM_MAX = 0x034, QUEUE_NUM = 0x038, QUEUE_READY = 0x044, QUEUE_NOTIFY = 0x050,
	INTERRUPT_STATUS = 0x060, INTERRUPT_ACK = 0x064, STATUS = 0x070,
	QUEUE_DESC = 0x080, QUEUE_DRIVER = 0x090, QUEUE_DEVICE = 0x0a0, CONFIG_GENERATION = 0x0fc,
};
// Bits of the status.
enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 0x40 };
// The longest queue, and the only feature of this device.
enum { LONGEST_QUEUE = 64 };
#define VIRTIO_F_VERSION_1 (1ull << 32)

static struct {
	uint32_t status, interrupt_status, device_features_sel, driver_features_sel, queue_sel;
	uint64_t driver_features;
	// The queue: its length, and the addresses of its three parts.
	uint32_t length, ready;
	uint64_t descriptors, available, used;
	// The number of chains that the device has taken from the available ring, modulo 65536.
	uint16_t taken;
} device;

// The memory of the guest at an address, or NULL if the range is not inside of its memory.
static void *guest(uint64_t address, uint64_t size)
{
	return size <= RAM_SIZE && address <= RAM_SIZE - size ? ram + address : NULL;
}

static void set_half(uint64_t *value, int is_high, uint32_t half)
{
	if (is_high)
		*value = (uint32_t)*value | (uint64_t)half << 32;
	else
		*value = *value >> 32 << 32 | half;
}

static uint32_t read_register(uint64_t offset)
{
	switch (offset) {
	//{
	case MAGIC:
		return 0x74726976;
	case VERSION:
		return 2;
	case DEVICE_ID:
		return 4;
	case DEVICE_FEATURES:
		return device.device_features_sel == 0 ? (uint32_t)VIRTIO_F_VERSION_1 :
		       device.device_features_sel == 1 ? VIRTIO_F_VERSION_1 >> 32 : 0;
	case QUEUE_NUM_MAX:
		return device.queue_sel == 0 ? LONGEST_QUEUE : 0;
	//= // TODO 1: MAGIC is 0x74726976 ("virt"), VERSION is 2, DEVICE_ID is 4.
	//= // TODO 2: DEVICE_FEATURES shows 32 bits of the features: those from 0 on if device.device_features_sel is 0, those
	//= // from 32 on if it is 1, and otherwise 0. The device has one feature, VIRTIO_F_VERSION_1.
	//= // TODO 3: QUEUE_NUM_MAX is LONGEST_QUEUE for queue 0 (device.queue_sel), and 0 for others: they do not exist.
	//}
	case QUEUE_READY:
		return device.queue_sel == 0 ? device.ready : 0;
	case INTERRUPT_STATUS:
		return device.interrupt_status;
	case STATUS:
		return device.status;
	}
	return 0;
}

// The driver writes the status.
static void set_status(uint32_t status)
{
	//{
	if (status == 0) {
		memset(&device, 0, sizeof(device));
		return;
	}
	if (status & FEATURES_OK && device.driver_features != VIRTIO_F_VERSION_1)
		status &= ~FEATURES_OK;
	device.status = status | (device.status & NEEDS_RESET);
	//= // TODO 4: The status 0 is a reset: clear the whole device.
	//= // TODO 5: The device refuses FEATURES_OK, by leaving out this bit, if device.driver_features is not exactly
	//= // VIRTIO_F_VERSION_1.
	//= device.status = status;
	//}
}

// The parts of a queue, as they are in memory: section 2.7 of virtio 1.2.
enum { NEXT = 1, WRITE = 2 };
struct descriptor {
	uint64_t address;
	uint32_t length;
	uint16_t flags, next;
};
struct available_ring {
	uint16_t flags, index, heads[];
};
struct used_ring {
	uint16_t flags, index;
	struct {
		uint32_t head, length;
	} elements[];
};

// Fills the buffers of a chain with random bytes. Returns their number, or -1 if the chain is broken.
static int64_t fill_chain(uint16_t head)
{
	//{
	struct descriptor *table = guest(device.descriptors, device.length * sizeof(*table));
	int64_t total = 0;
	uint16_t number = head;

	if (!table)
		return -1;
	for (uint32_t steps = 0; steps < device.length && number < device.length; steps++) {
		struct descriptor descriptor = table[number];
		if (descriptor.flags & WRITE) {
			uint8_t *buffer = guest(descriptor.address, descriptor.length);
			if (!buffer)
				return -1;
			for (uint32_t done = 0; done < descriptor.length;) {
				ssize_t got = getrandom(buffer + done, descriptor.length - done, 0);
				need(got > 0, "getrandom");
				done += got;
			}
			total += descriptor.length;
		}
		if (!(descriptor.flags & NEXT))
			return total;
		number = descriptor.next;
	}
	return -1;
	//= // TODO 6: The table of descriptors is at guest(device.descriptors, ...). Start with the descriptor `head`. If it has the
	//= // flag WRITE, fill its buffer with getrandom(), and add its length to the result; leave other buffers alone. If it has
	//= // the flag NEXT, go on with the descriptor `next`.
	//= // Return -1 if guest() returns NULL, if a number is not below device.length, or if the chain has more than
	//= // device.length descriptors: then it is a circle.
	//= (void)head, (void)guest;
	//= return -1;
	//}
}

// The driver has notified the queue: performs all chains that are new in the available ring.
static void process_queue(void)
{
	if (!(device.status & DRIVER_OK) || device.status & NEEDS_RESET || !device.ready)
		return;
	//{
	struct available_ring *available = guest(device.available, 4 + 2 * device.length);
	struct used_ring *used = guest(device.used, 4 + 8 * device.length);
	while (available && used && device.taken != *(volatile uint16_t *)&available->index) {
		uint16_t head = available->heads[device.taken % device.length];
		int64_t length = fill_chain(head);
		if (length < 0)
			break;
		used->elements[used->index % device.length].head = head;
		used->elements[used->index % device.length].length = length;
		__atomic_store_n(&used->index, used->index + 1, __ATOMIC_RELEASE);
		device.taken++;
		device.interrupt_status |= 1;
	}
	if (!available || !used || device.taken != available->index)
		device.status |= NEEDS_RESET;
	//= // TODO 7: The available ring is at guest(device.available, ...), and the used ring at guest(device.used, ...). While
	//= // device.taken differs from the index of the available ring:
	//= //   - take the head from heads[device.taken % device.length], and call fill_chain
	//= //   - if it returns -1, set NEEDS_RESET in device.status, and return
	//= //   - write head and length to elements[used->index % device.length], and then add 1 to used->index
	//= //   - add 1 to device.taken, and set bit 0 of device.interrupt_status.
	//= (void)fill_chain;
	//}
}

static void write_register(uint64_t offset, uint32_t value)
{
	switch (offset) {
	case DEVICE_FEATURES_SEL:
		device.device_features_sel = value;
		break;
	case DRIVER_FEATURES:
		if (device.driver_features_sel < 2)
			set_half(&device.driver_features, device.driver_features_sel, value);
		break;
	case DRIVER_FEATURES_SEL:
		device.driver_features_sel = value;
		break;
	case QUEUE_SEL:
		device.queue_sel = value;
		break;
	case QUEUE_NOTIFY:
		if (value == 0)
			process_queue();
		break;
	case INTERRUPT_ACK:
		device.interrupt_status &= ~value;
		break;
	case STATUS:
		set_status(value);
		break;
	}
	// The registers of a queue, which the driver must not change while the queue is ready.
	if (device.queue_sel != 0)
		return;
	if (offset == QUEUE_READY)
		device.ready = value & 1 && device.length != 0;
	if (device.ready)
		return;
	if (offset == QUEUE_NUM && value <= LONGEST_QUEUE && (value & (value - 1)) == 0)
		device.length = value;
	if (offset == QUEUE_DESC || offset == QUEUE_DESC + 4)
		set_half(&device.descriptors, offset & 4, value);
	if (offset == QUEUE_DRIVER || offset == QUEUE_DRIVER + 4)
		set_half(&device.available, offset & 4, value);
	if (offset == QUEUE_DEVICE || offset == QUEUE_DEVICE + 4)
		set_half(&device.used, offset & 4, value);
}

// An access to an address without memory. The registers of the device have 32 bits.
static void mmio_access(void)
{
	uint64_t offset = run->mmio.phys_addr - DEVICE;
	uint32_t value = 0;
	int is_register = run->mmio.phys_addr >= DEVICE && offset < DEVICE_SIZE && run->mmio.len == 4;

	if (run->mmio.is_write) {
		memcpy(&value, run->mmio.data, sizeof(value));
		if (is_register)
			write_register(offset, value);
	} else {
		memset(run->mmio.data, 0, sizeof(run->mmio.data));
		if (is_register)
			value = read_register(offset);
		memcpy(run->mmio.data, &value, sizeof(value));
	}
}

int main(int argc, char **argv)
{
	if (argc != 2) {
		fprintf(stderr, "usage: ./vmm IMAGE\n");
		return 1;
	}
	setvbuf(stdout, NULL, _IOLBF, 0);
	create_machine();
	load(argv[1]);
	set_registers();
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			if (run->io.direction == KVM_EXIT_IO_OUT && run->io.port == PRINT && run->io.size == 1)
				fwrite((uint8_t *)run + run->io.data_offset, 1, run->io.count, stdout);
			break;
		case KVM_EXIT_MMIO:
			mmio_access();
			break;
		case KVM_EXIT_HLT:
			return 0;
		default:
			fprintf(stderr, "vmm: unexpected exit, reason %u\n", run->exit_reason);
			return 2;
		}
	}
}
