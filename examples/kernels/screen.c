// A multiboot 1 kernel for the screen and the keyboard of a PC: draws a frame in colours, moves the cursor, and echoes the
// keys that are typed, until Escape. It polls the keyboard controller, so it needs no interrupts.
// (VGA text mode: "VGA Chipset Reference" of FreeVGA. Scan codes of set 1: IBM PC AT Technical Reference.)
#include "kernel.h"

#define HEADER_MAGIC 0x1badb002
#define CELLS ((volatile uint16_t *)0xb8000)
#define COLUMNS 80
#define CRTC 0x3d4
// The data and the status of the keyboard controller.
#define KEY_DATA 0x60
#define KEY_STATUS 0x64
// Scan codes.
#define ESCAPE 0x01
#define BACKSPACE 0x0e
#define ENTER 0x1c
#define LEFT_SHIFT 0x2a
#define RIGHT_SHIFT 0x36
#define RELEASED 0x80

__attribute__((section(".header"), used)) static const struct {
	uint32_t magic, flags, checksum;
} header = { HEADER_MAGIC, 0, -(uint32_t)HEADER_MAGIC };

// The characters of the scan codes, without and with shift. 0 is a key without a character.
static const char plain[] = "\0\0001234567890-=\0\0qwertyuiop[]\0\0asdfghjkl;'`\0\\zxcvbnm,./\0\0\0 ";
static const char shifted[] = "\0\0!@#$%^&*()_+\0\0QWERTYUIOP{}\0\0ASDFGHJKL:\"~\0|ZXCVBNM<>?\0\0\0 ";

static void cell(int row, int column, uint8_t character, uint8_t attribute)
{
	CELLS[row * COLUMNS + column] = (uint16_t)(attribute << 8 | character);
}

static void text(int row, int column, const char *text, uint8_t attribute)
{
	while (*text)
		cell(row, column++, (uint8_t)*text++, attribute);
}

static void cursor(int row, int column)
{
	int place = row * COLUMNS + column;

	outb(CRTC, 0x0e);
	outb(CRTC + 1, (uint8_t)(place >> 8));
	outb(CRTC, 0x0f);
	outb(CRTC + 1, (uint8_t)place);
}

// A frame of double lines (code page 437), yellow on blue, around a title and the 16 colours.
static void draw(void)
{
	for (int column = 1; column < 39; column++) {
		cell(0, column, 0xcd, 0x1e);
		cell(4, column, 0xcd, 0x1e);
	}
	for (int row = 1; row < 4; row++) {
		for (int column = 1; column < 39; column++)
			cell(row, column, ' ', 0x1f);
		cell(row, 0, 0xba, 0x1e);
		cell(row, 39, 0xba, 0x1e);
	}
	cell(0, 0, 0xc9, 0x1e);
	cell(0, 39, 0xbb, 0x1e);
	cell(4, 0, 0xc8, 0x1e);
	cell(4, 39, 0xbc, 0x1e);
	text(1, 2, "Hello from the screen of a PC", 0x1f);
	for (int colour = 0; colour < 16; colour++)
		cell(3, 2 + 2 * colour, 0xdb, (uint8_t)(0x10 | colour));
	text(6, 0, "Type, and end with Escape:", 0x07);
}

// Waits for a key, and returns its scan code.
static uint8_t key(void)
{
	while (!(inb(KEY_STATUS) & 1))
		;
	return inb(KEY_DATA);
}

void kernel_main(void)
{
	int row = 7, column = 0, shift = 0;

	draw();
	for (;;) {
		uint8_t code, character = 0;

		cursor(row, column);
		code = key();
		if (code == ESCAPE)
			end(42);
		if ((code & ~RELEASED) == LEFT_SHIFT || (code & ~RELEASED) == RIGHT_SHIFT)
			shift = !(code & RELEASED);
		else if (code < sizeof(plain) - 1)
			character = (uint8_t)(shift ? shifted[code] : plain[code]);
		if (code == BACKSPACE && column > 0) {
			cell(row, --column, ' ', 0x07);
		} else if (code == ENTER || (character && column == COLUMNS - 1)) {
			row = row < 24 ? row + 1 : 7;
			column = 0;
		} else if (character) {
			cell(row, column++, character, 0x0a);
		}
	}
}
