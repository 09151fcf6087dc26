// A multiboot 1 kernel for the disk of a PC: identifies the first ATA drive, reads its first sector, writes its second one,
// and reads past its end. It polls the status, so it needs no interrupts. (ATA/ATAPI-6, sections 7 to 9.)
#include "kernel.h"

#define HEADER_MAGIC 0x1badb002
#define ATA 0x1f0
#define CONTROL 0x3f6
#define BUSY 0x80
#define DATA_REQUEST 0x08
#define FAILED 0x01
#define IDENTIFY 0xec
#define READ 0x20
#define WRITE 0x30
#define FLUSH 0xe7

__attribute__((section(".header"), used)) static const struct {
	uint32_t magic, flags, checksum;
} header = { HEADER_MAGIC, 0, -(uint32_t)HEADER_MAGIC };

static uint16_t sector[256];

static uint8_t status(void)
{
	uint8_t now;

	while ((now = inb(ATA + 7)) & BUSY)
		;
	return now;
}

// Gives a command for one sector. Returns the status.
static uint8_t command(uint8_t code, uint32_t lba)
{
	outb(ATA + 6, 0xe0 | (lba >> 24 & 15));
	outb(ATA + 2, 1);
	outb(ATA + 3, (uint8_t)lba);
	outb(ATA + 4, (uint8_t)(lba >> 8));
	outb(ATA + 5, (uint8_t)(lba >> 16));
	outb(ATA + 7, code);
	return status();
}

static void receive(void)
{
	void *to = sector;
	uint32_t count = 256;

	__asm__ volatile("rep insw" : "+D"(to), "+c"(count) : "d"(ATA) : "memory");
}

static void send(void)
{
	const void *from = sector;
	uint32_t count = 256;

	__asm__ volatile("rep outsw" : "+S"(from), "+c"(count) : "d"(ATA) : "memory");
}

static void check(int good, const char *what)
{
	if (good)
		return;
	print("wrong: ");
	print(what);
	print_named(", status ", inb(ATA + 7));
	print_named(", error ", inb(ATA + 1));
	print("\n");
	end(1);
}

void kernel_main(uint32_t magic, const void *from)
{
	(void)magic;
	(void)from;
	// No interrupts.
	outb(CONTROL, 2);
	outb(ATA + 6, 0xe0);
	// Without a drive nothing answers, and reads return all ones.
	if (inb(ATA + 7) == 0xff) {
		print("no drive: give --disk FILE\n");
		end(1);
	}
	outb(ATA + 6, 0xf0);
	print(inb(ATA + 7) ? "two drives\n" : "one drive\n");
	check(command(IDENTIFY, 0) & DATA_REQUEST, "IDENTIFY DEVICE");
	receive();
	print("model: ");
	for (int word = 27; word < 47; word++) {
		put((char)(sector[word] >> 8));
		put((char)sector[word]);
	}
	uint32_t sectors = sector[60] | (uint32_t)sector[61] << 16;
	print_named("\nsectors: ", sectors);
	check(command(READ, 0) & DATA_REQUEST, "READ SECTORS");
	receive();
	print("\nsector 0: ");
	for (const char *c = (const char *)sector; *c && *c != '\n'; c++)
		put(*c);
	print("\n");
	for (int word = 0; word < 256; word++)
		sector[word] = (uint16_t)(word * 3);
	if (command(WRITE, 1) & FAILED) {
		print_named("write refused: ", inb(ATA + 1));
		print("\n");
	} else {
		send();
		check(!(status() & FAILED), "WRITE SECTORS");
		check(!(command(FLUSH, 0) & FAILED), "FLUSH CACHE");
		for (int word = 0; word < 256; word++)
			sector[word] = 0;
		check(command(READ, 1) & DATA_REQUEST, "READ SECTORS");
		receive();
		check(sector[255] == 255 * 3, "what was written");
		print("write and read: ok\n");
	}
	check(command(READ, sectors) & FAILED, "a read past the end");
	print_named("past the end: error ", inb(ATA + 1));
	print("\n");
	end(42);
}
