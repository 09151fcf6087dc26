// Chapter 15: booting Linux. Usage: ./vmm KERNEL COMMAND-LINE [INITRD]
//
// KERNEL is a bzImage. The VMM loads it at 1 MiB and enters it in long mode at its 64-bit entry. The guest's serial port,
// COM1, is the standard output. The guest ends with a reset: a byte 0xFE to port 0x64, or a triple fault.
#include <asm/bootparam.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

enum { MIB = 0x100000, RAM_SIZE = 256 * MIB };
// Addresses of the guest. Those below 1 MiB are free for the boot loader.
enum { GDT = 0x500, BOOT_PARAMS = 0x7000, PML4 = 0x9000, PDPT = 0xa000, PD = 0xb000, STACK = 0x10000 };
enum { COMMAND_LINE = 0x20000, LOW_END = 0x9fc00, KERNEL = MIB };
// The segments of the boot protocol.
enum { BOOT_CS = 0x10, BOOT_DS = 0x18 };
enum { COM1 = 0x3f8, COM1_IRQ = 4, CLOCK = 0x71, KEYBOARD = 0x64, RESET = 0xfe };

static uint8_t *ram;
static int kvm, vm, vcpu;
static struct kvm_run *run;

static void need(int good, const char *what)
{
	if (!good) {
		perror(what);
		exit(1);
	}
}

static void refuse(const char *path, const char *why)
{
	fprintf(stderr, "vmm: %s: %s\n", path, why);
	exit(1);
}

static void create_machine(void)
{
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	need(kvm >= 0, "/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	need(vm >= 0, "KVM_CREATE_VM");
	need(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul) == 0, "KVM_SET_TSS_ADDR");
	ram = mmap(NULL, RAM_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	need(ram != MAP_FAILED, "memory of the guest");
	struct kvm_userspace_memory_region slot = { .memory_size = RAM_SIZE, .userspace_addr = (uintptr_t)ram };
	need(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &slot) == 0, "KVM_SET_USER_MEMORY_REGION");
	// The interrupt controllers and the timer of a PC, inside KVM.
	need(ioctl(vm, KVM_CREATE_IRQCHIP, 0) == 0, "KVM_CREATE_IRQCHIP");
	struct kvm_pit_config pit = { .flags = KVM_PIT_SPEAKER_DUMMY };
	need(ioctl(vm, KVM_CREATE_PIT2, &pit) == 0, "KVM_CREATE_PIT2");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	need(vcpu >= 0, "KVM_CREATE_VCPU");
	int size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	need(run != MAP_FAILED, "kvm_run");
}

// The guest may use what the processor and KVM have.
static void set_cpuid(void)
{
	static union {
		struct kvm_cpuid2 list;
		uint8_t room[sizeof(struct kvm_cpuid2) + 256 * sizeof(struct kvm_cpuid_entry2)];
	} cpuid;
	cpuid.list.nent = 256;
	need(ioctl(kvm, KVM_GET_SUPPORTED_CPUID, &cpuid.list) == 0, "KVM_GET_SUPPORTED_CPUID");
	for (uint32_t i = 0; i < cpuid.list.nent; i++)
		if (cpuid.list.entries[i].function == 1)
			cpuid.list.entries[i].ecx |= 1u << 31; // there is a hypervisor: Linux then asks for KVM's clock
	need(ioctl(vcpu, KVM_SET_CPUID2, &cpuid.list) == 0, "KVM_SET_CPUID2");
}

// Long mode with 1 GiB of memory mapped one to one, as in chapter 7, and the segments of the boot protocol.
static void set_long_mode(struct kvm_sregs *sregs)
{
	uint64_t *gdt = (uint64_t *)(ram + GDT), *pd = (uint64_t *)(ram + PD);
	gdt[BOOT_CS / 8] = 0x00af9a000000ffff;
	gdt[BOOT_DS / 8] = 0x00cf92000000ffff;
	sregs->gdt.base = GDT;
	sregs->gdt.limit = 4 * 8 - 1;
	*(uint64_t *)(ram + PML4) = PDPT | 3;
	*(uint64_t *)(ram + PDPT) = PD | 3;
	for (uint64_t i = 0; i < 512; i++)
		pd[i] = i << 21 | 0x83;
	sregs->cr3 = PML4;
	sregs->cr4 = 1 << 5;                    // PAE
	sregs->cr0 = 0x80000011;                // PG, ET, PE
	sregs->efer = 1 << 8 | 1 << 10;         // LME, LMA
	struct kvm_segment code = { .limit = ~0u, .selector = BOOT_CS, .type = 11, .present = 1, .s = 1, .l = 1, .g = 1 };
	struct kvm_segment data = { .limit = ~0u, .selector = BOOT_DS, .type = 3, .present = 1, .s = 1, .db = 1, .g = 1 };
	sregs->cs = code;
	sregs->ds = sregs->es = sregs->fs = sregs->gs = sregs->ss = data;
}

static uint8_t *read_file(const char *path, size_t *length)
{
	FILE *file = fopen(path, "rb");
	need(file != NULL, path);
	uint8_t *bytes = malloc(RAM_SIZE);
	need(bytes != NULL, "memory");
	*length = fread(bytes, 1, RAM_SIZE, file);
	need(!ferror(file), path);
	fclose(file);
	return bytes;
}

// The header is in the first sectors of the file, at 0x1f1.
static struct setup_header read_header(const char *path, const uint8_t *file, size_t length)
{
	struct setup_header header;
	if (length < 0x1f1 + sizeof(header))
		refuse(path, "the file is too short for a bzImage");
	memcpy(&header, file + 0x1f1, sizeof(header));
	//{
	if (header.header != 0x53726448)
		refuse(path, "this is not a bzImage: HdrS is missing at 0x202");
	if (header.version < 0x20c || !(header.xloadflags & XLF_KERNEL_64))
		refuse(path, "the kernel has no 64-bit entry");
	//= // TODO 1: Refuse the file if header.header is not 0x53726448 ("HdrS"), if header.version is below 0x20c, and if
	//= // XLF_KERNEL_64 is not in header.xloadflags: refuse(path, "...").
	//}
	return header;
}

// Copies the kernel to 1 MiB. It follows the boot sector and the setup sectors.
static void load_kernel(const char *path, const struct setup_header *header, const uint8_t *file, size_t length)
{
	//{
	size_t sectors = header->setup_sects ? header->setup_sects : 4;
	size_t start = (sectors + 1) * 512;
	if (start >= length || length - start > RAM_SIZE - KERNEL)
		refuse(path, "the kernel is cut off, or larger than the memory");
	memcpy(ram + KERNEL, file + start, length - start);
	//= // TODO 2: The kernel starts in the file after header->setup_sects + 1 sectors of 512 bytes; 0 in setup_sects means 4.
	//= // Refuse the file if it ends before. Copy the rest of the file to ram + KERNEL.
	//= (void)path, (void)header, (void)file, (void)length;
	//}
}

static void add_memory(struct boot_params *params, uint64_t start, uint64_t end)
{
	struct boot_e820_entry *entry = &params->e820_table[params->e820_entries++];
	entry->addr = start;
	entry->size = end - start;
	entry->type = 1;
}

// Tells the kernel about its machine. `initrd` has `size` bytes, at the end of the memory.
static void fill_boot_params(const struct setup_header *header, const char *command_line, size_t initrd, size_t size)
{
	struct boot_params *params = (struct boot_params *)(ram + BOOT_PARAMS);
	memset(params, 0, sizeof(*params));
	strcpy((char *)ram + COMMAND_LINE, command_line);
	//{
	params->hdr = *header;
	params->hdr.type_of_loader = 0xff;
	params->hdr.cmd_line_ptr = COMMAND_LINE;
	params->hdr.ramdisk_image = size ? initrd : 0;
	params->hdr.ramdisk_size = size;
	add_memory(params, 0, LOW_END);
	add_memory(params, KERNEL, RAM_SIZE);
	//= // TODO 3: Copy *header to params->hdr. In the copy, set type_of_loader to 0xff (a loader without a number of its own),
	//= // cmd_line_ptr to COMMAND_LINE, ramdisk_image to initrd, and ramdisk_size to size (both 0 if size is 0).
	//= // TODO 4: Describe the memory with two calls of add_memory: from 0 to LOW_END, and from 1 MiB to RAM_SIZE. The gap
	//= // is where a PC has its screen and its firmware.
	//= (void)header, (void)initrd, (void)size, (void)add_memory;
	//}
}

static void set_registers(void)
{
	struct kvm_sregs sregs;
	need(ioctl(vcpu, KVM_GET_SREGS, &sregs) == 0, "KVM_GET_SREGS");
	set_long_mode(&sregs);
	need(ioctl(vcpu, KVM_SET_SREGS, &sregs) == 0, "KVM_SET_SREGS");
	//{
	struct kvm_regs regs = { .rip = KERNEL + 0x200, .rsi = BOOT_PARAMS, .rsp = STACK, .rflags = 2 };
	//= // TODO 5: The 64-bit entry is 0x200 after the start of the kernel, and RSI has the address of the boot_params.
	//= struct kvm_regs regs = { .rip = KERNEL, .rsp = STACK, .rflags = 2 };
	//}
	need(ioctl(vcpu, KVM_SET_REGS, &regs) == 0, "KVM_SET_REGS");
}

// The serial port COM1, a 16550 without input. It interrupts when it can take the next byte, if the guest wants that.
static struct {
	uint8_t interrupts, line_control, modem_control, scratch, divisor[2], wants_byte;
} com1;

enum { DATA, INTERRUPTS, INTERRUPT_ID, LINE_CONTROL, MODEM_CONTROL, LINE_STATUS, MODEM_STATUS, SCRATCH };

static void update_interrupt(void)
{
	struct kvm_irq_level level = { .irq = COM1_IRQ, .level = com1.wants_byte && com1.interrupts & 2 };
	need(ioctl(vm, KVM_IRQ_LINE, &level) == 0, "KVM_IRQ_LINE");
}

static void com1_write(int number, uint8_t value)
{
	if (number <= INTERRUPTS && com1.line_control & 0x80)
		com1.divisor[number] = value;
	else if (number == DATA) {
		putchar(value);
		if (value == '\n')
			fflush(stdout);
		com1.wants_byte = 1;
		update_interrupt();
	} else if (number == INTERRUPTS) {
		com1.interrupts = value & 15;
		com1.wants_byte = 1;
		update_interrupt();
	} else if (number == LINE_CONTROL)
		com1.line_control = value;
	else if (number == MODEM_CONTROL)
		com1.modem_control = value;
	else if (number == SCRATCH)
		com1.scratch = value;
}

static uint8_t com1_read(int number)
{
	if (number <= INTERRUPTS && com1.line_control & 0x80)
		return com1.divisor[number];
	switch (number) {
	case INTERRUPTS:
		return com1.interrupts;
	case INTERRUPT_ID:
		if (com1.wants_byte && com1.interrupts & 2) {
			com1.wants_byte = 0;
			update_interrupt();
			return 2;
		}
		return 1;
	case LINE_CONTROL:
		return com1.line_control;
	case MODEM_CONTROL:
		return com1.modem_control;
	case LINE_STATUS:
		//{
		return 0x60;
		//= // TODO 6: Bit 5 says that the port takes a byte, and bit 6 that all bytes have been sent. Both are always 1.
		//= return 0;
		//}
	case MODEM_STATUS:
		return 0xb0;
	case SCRATCH:
		return com1.scratch;
	}
	return 0;
}

// An access to a port. A port without a device reads as ones. The clock of a PC is missing, too: Linux would wait for a
// bit of it to become 0, so it reads as zeroes.
static void port_access(void)
{
	uint8_t *data = (uint8_t *)run + run->io.data_offset;
	uint16_t port = run->io.port;
	if (run->io.direction == KVM_EXIT_IO_IN)
		memset(data, port == CLOCK ? 0 : 0xff, (size_t)run->io.size * run->io.count);
	for (uint32_t i = 0; i < run->io.count && run->io.size == 1; i++) {
		if (port >= COM1 && port < COM1 + 8 && run->io.direction == KVM_EXIT_IO_IN)
			data[i] = com1_read(port - COM1);
		else if (port >= COM1 && port < COM1 + 8)
			com1_write(port - COM1, data[i]);
		else if (port == KEYBOARD && run->io.direction == KVM_EXIT_IO_OUT && data[i] == RESET)
			exit(0);
	}
}

static void run_guest(void)
{
	for (;;) {
		need(ioctl(vcpu, KVM_RUN, 0) == 0, "KVM_RUN");
		switch (run->exit_reason) {
		case KVM_EXIT_IO:
			port_access();
			break;
		case KVM_EXIT_MMIO:
			if (!run->mmio.is_write)
				memset(run->mmio.data, 0xff, sizeof(run->mmio.data));
			break;
		case KVM_EXIT_SHUTDOWN:
			fprintf(stderr, "vmm: the guest was reset by a triple fault\n");
			exit(3);
		default:
			fprintf(stderr, "vmm: unexpected exit, reason %u\n", run->exit_reason);
			exit(2);
		}
	}
}

int main(int argc, char **argv)
{
	if (argc != 3 && argc != 4) {
		fprintf(stderr, "usage: ./vmm KERNEL COMMAND-LINE [INITRD]\n");
		return 1;
	}
	size_t length, size = 0, initrd = 0;
	uint8_t *file = read_file(argv[1], &length);
	struct setup_header header = read_header(argv[1], file, length);
	if (strlen(argv[2]) > header.cmdline_size || strlen(argv[2]) >= LOW_END - COMMAND_LINE)
		refuse(argv[1], "the command line is longer than this kernel takes");
	create_machine();
	load_kernel(argv[1], &header, file, length);
	if (argc == 4) {
		uint8_t *disk = read_file(argv[3], &size);
		if (size > RAM_SIZE / 2)
			refuse(argv[3], "the initrd is larger than half of the memory");
		initrd = (RAM_SIZE - size) & ~0xfffu;
		memcpy(ram + initrd, disk, size);
		free(disk);
	}
	free(file);
	fill_boot_params(&header, argv[2], initrd, size);
	if (ram[KERNEL + 0x200] == 0 && ram[KERNEL + 0x201] == 0) {
		fprintf(stderr, "vmm: there is no code at the 64-bit entry, 0x100200\n");
		return 2;
	}
	set_cpuid();
	set_registers();
	run_guest();
}
