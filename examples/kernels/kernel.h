// The parts that the example kernels have in common: ports, the serial port, and numbers as text.
#pragma once

#include <stddef.h>
#include <stdint.h>

// COM1, a 16550 (docs/abi.md, section 3).
#define SERIAL 0x3f8
// Ends the run with the exit code that is written.
#define EXIT 0xf4

static inline void outb(uint16_t port, uint8_t value)
{
	__asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port));
}

static inline uint8_t inb(uint16_t port)
{
	uint8_t value;
	__asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
	return value;
}

static inline void put(char c)
{
	// Bit 5 of the line status: the transmitter takes a byte.
	while (!(inb(SERIAL + 5) & 0x20))
		;
	outb(SERIAL, (uint8_t)c);
}

static inline void print(const char *text)
{
	while (*text)
		put(*text++);
}

static inline void print_hex(uint64_t number)
{
	int shift = 60;

	print("0x");
	while (shift > 0 && !(number >> shift & 15))
		shift -= 4;
	for (; shift >= 0; shift -= 4)
		put("0123456789abcdef"[number >> shift & 15]);
}

static inline void print_named(const char *name, uint64_t number)
{
	print(name);
	print_hex(number);
}

// A range of the memory map. Type 1 is RAM.
static inline void print_range(uint64_t start, uint64_t size, uint32_t type)
{
	print_named("map: ", start);
	print_named(" to ", start + size - 1);
	print(type == 1 ? " usable\n" : " reserved\n");
}

// A module: its place, its text, and its first line.
static inline void print_module(uint64_t start, uint64_t size, const char *text)
{
	const char *content = (const char *)(uintptr_t)start;

	print_named("module: ", size);
	print_named(" bytes at ", start);
	print(", text \"");
	print(text);
	print("\", content \"");
	for (uint64_t i = 0; i < size && content[i] != '\n'; i++)
		put(content[i]);
	print("\"\n");
}

static inline _Noreturn void end(uint8_t code)
{
	outb(EXIT, code);
	for (;;)
		__asm__ volatile("hlt");
}
