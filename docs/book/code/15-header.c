// ANCHOR: all
// Prints the setup header of a Linux kernel: ./15-header BZIMAGE
#include <asm/bootparam.h>
#include <stdio.h>
#include <string.h>

int main(int argc, char **argv)
{
	static unsigned char start[0x400];
	struct setup_header header;
	FILE *file = argc == 2 ? fopen(argv[1], "rb") : NULL;
	if (file == NULL || fread(start, sizeof(start), 1, file) != 1) {
		fprintf(stderr, "usage: 15-header BZIMAGE\n");
		return 1;
	}
	// ANCHOR: header
	memcpy(&header, start + 0x1f1, sizeof(header));
	if (header.header != 0x53726448) {
		fprintf(stderr, "this is not a bzImage: HdrS is missing\n");
		return 1;
	}
	printf("protocol      %d.%02d\n", header.version >> 8, header.version & 0xff);
	printf("setup sectors %d, so the kernel is at %#x in the file\n", header.setup_sects, (header.setup_sects + 1) * 512);
	printf("64-bit entry  %s\n", header.xloadflags & XLF_KERNEL_64 ? "yes" : "no");
	printf("wants to run  at %#llx, and needs %#x bytes there\n", header.pref_address, header.init_size);
	printf("command line  up to %u bytes\n", header.cmdline_size);
	// ANCHOR_END: header
	return 0;
}
// ANCHOR_END: all
