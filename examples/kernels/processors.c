// A multiboot 1 kernel for the processors of a PC: counts them in the MP table, starts the others with INIT and SIPI, and
// waits until each has answered. Then all of them halt for good.
// (Intel SDM, volume 3, section 9.4 "Multiple-Processor Initialization"; MultiProcessor Specification 1.4, chapter 4.)
#include "kernel.h"

#define HEADER_MAGIC 0x1badb002
#define LOCAL_APIC 0xfee00000
#define SPURIOUS (*(volatile uint32_t *)(LOCAL_APIC + 0xf0))
#define COMMAND (*(volatile uint32_t *)(LOCAL_APIC + 0x300))
// To all processors but this one.
#define OTHERS 0xc0000
#define INIT 0x4500
#define SIPI 0x4600
// The page in which the other processors start, and the place of their count.
#define START ((volatile uint8_t *)0x8000)
#define COUNT (*(volatile uint16_t *)0x9000)

__attribute__((section(".header"), used)) static const struct {
	uint32_t magic, flags, checksum;
} header = { HEADER_MAGIC, 0, -(uint32_t)HEADER_MAGIC };

// 16-bit code: cli; xor ax, ax; mov ds, ax; lock inc word [0x9000]; again: hlt; jmp again
static const uint8_t code[] = { 0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0xf0, 0xff, 0x06, 0x00, 0x90, 0xf4, 0xeb, 0xfd };

// The number of processors in the MP table. 0 if there is none.
static uint32_t processors(void)
{
	uint32_t count = 0;

	for (uintptr_t at = 0xf0000; at < 0x100000; at += 16) {
		const uint32_t *pointer = (const uint32_t *)at;

		if (pointer[0] != 0x5f504d5f)
			continue;
		const uint8_t *table = (const uint8_t *)(uintptr_t)pointer[1];
		uint16_t entries = *(const uint16_t *)(table + 34);
		const uint8_t *entry = table + 44;

		for (; entries; entries--) {
			count += entry[0] == 0;
			entry += entry[0] == 0 ? 20 : 8;
		}
		break;
	}
	return count;
}

void kernel_main(uint32_t magic, const void *from)
{
	uint32_t expected = processors();

	(void)magic;
	(void)from;
	print_named("processors in the MP table: ", expected);
	print("\n");
	for (unsigned int i = 0; i < sizeof code; i++)
		START[i] = code[i];
	COUNT = 0;
	SPURIOUS = 0x1ff;
	COMMAND = OTHERS | INIT;
	// The second SIPI is for processors that missed the first one. The others ignore it.
	COMMAND = OTHERS | SIPI | (uint32_t)(uintptr_t)START >> 12;
	COMMAND = OTHERS | SIPI | (uint32_t)(uintptr_t)START >> 12;
	while (COUNT + 1u < expected)
		__asm__ volatile("pause");
	print_named("started: ", COUNT);
	print("\n");
	for (;;)
		__asm__ volatile("cli; hlt");
}
