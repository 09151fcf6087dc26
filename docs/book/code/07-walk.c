/* ANCHOR: all */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* Four tables, at the addresses 0x1000, 0x2000, 0x3000 and 0x4000. They are ordinary memory of this program. */
enum { PML4 = 0x1000, PDPT = 0x2000, PD = 0x3000, PT = 0x4000, ENTRIES = 512 };
static uint64_t tables[4][ENTRIES];

enum { PRESENT = 1, WRITABLE = 2 };
#define ADDRESS_BITS 0x000ffffffffff000u

/* ANCHOR: entry */
static uint64_t *entry_of(uint64_t table, unsigned index)
{
	return &tables[table / 0x1000 - 1][index];
}
/* ANCHOR_END: entry */

/* ANCHOR: walk */
static void walk(uint64_t cr3, uint64_t virtual)
{
	const char *names[] = { "PML4", "PDPT", "PD", "PT" };
	uint64_t table = cr3;

	for (int level = 0, shift = 39; level < 4; ++level, shift -= 9) {
		unsigned index = virtual >> shift & 0x1ff;
		uint64_t entry = *entry_of(table, index);

		printf("  %-4s at 0x%llx, entry %u: 0x%llx\n", names[level], (unsigned long long)table, index,
		       (unsigned long long)entry);
		if (!(entry & PRESENT)) {
			printf("  not mapped: page fault\n");
			return;
		}
		table = entry & ADDRESS_BITS;
	}
	printf("  physical address 0x%llx\n", (unsigned long long)(table | (virtual & 0xfff)));
}
/* ANCHOR_END: walk */

int main(int argc, char **argv)
{
	/* ANCHOR: tables */
	*entry_of(PML4, 0) = PDPT | PRESENT | WRITABLE;
	*entry_of(PDPT, 0) = PD | PRESENT | WRITABLE;
	*entry_of(PD, 2) = PT | PRESENT | WRITABLE;
	*entry_of(PT, 5) = 0x9000 | PRESENT;
	/* ANCHOR_END: tables */
	for (int i = 1; i < argc; ++i) {
		uint64_t virtual = strtoull(argv[i], NULL, 0);

		printf("0x%llx:\n", (unsigned long long)virtual);
		walk(PML4, virtual);
	}
	return 0;
}
/* ANCHOR_END: all */
