// A multiboot 1 kernel: prints what its boot loader tells it. (Multiboot specification 0.6.96.)
#include "kernel.h"

#define HEADER_MAGIC 0x1badb002
#define LOADER_MAGIC 0x2badb002
// Modules on pages, and the memory map.
#define FLAGS 3
#define HAS_ADDRESSES (1 << 16)

extern char load_start[], load_end[], bss_end[], start[];

// The addresses are for the flat binary that is made from this kernel, and are used for the ELF file too.
__attribute__((section(".header"), used)) static const struct {
	uint32_t magic, flags, checksum;
#ifdef ADDRESSES
	const void *header_addr, *load_addr, *load_end_addr, *bss_end_addr, *entry_addr;
} header = {
	HEADER_MAGIC, FLAGS | HAS_ADDRESSES, -(uint32_t)(HEADER_MAGIC + (FLAGS | HAS_ADDRESSES)),
	&header, load_start, load_end, bss_end, start,
};
#else
} header = { HEADER_MAGIC, FLAGS, -(uint32_t)(HEADER_MAGIC + FLAGS) };
#endif

struct information {
	uint32_t flags, mem_lower, mem_upper, boot_device, cmdline, mods_count, mods_addr;
	uint32_t num, size, addr, shndx, mmap_length, mmap_addr, drives_length, drives_addr, config_table;
	uint32_t boot_loader_name;
};

struct module {
	uint32_t start, end, string, reserved;
};

struct entry {
	uint32_t size;
	uint64_t base, length;
	uint32_t type;
} __attribute__((packed));

// The number of symbols, from the section headers of the ELF file. They may be of 32 or of 64 bits.
static uint32_t symbols(const struct information *from)
{
	int is_64 = from->size == 64;

	for (uint32_t i = 0; i < from->num; i++) {
		const uint32_t *section = (const void *)(uintptr_t)(from->addr + i * from->size);
		uint32_t address = section[is_64 ? 4 : 3], size = section[is_64 ? 8 : 5];

		if (section[1] == 2 && address)
			return size / (is_64 ? 24 : 16);
	}
	return 0;
}

void kernel_main(uint32_t magic, const struct information *from)
{
	if (magic != LOADER_MAGIC) {
		print_named("not a multiboot 1 loader: magic ", magic);
		end(1);
	}
	print("multiboot 1, loader: ");
	print((const char *)(uintptr_t)from->boot_loader_name);
	print("\ncommand line: ");
	print((const char *)(uintptr_t)from->cmdline);
	print_named("\nlower memory: ", from->mem_lower);
	print_named(" KiB, upper memory: ", from->mem_upper);
	print(" KiB\n");
	for (uint32_t at = 0; at < from->mmap_length;) {
		const struct entry *entry = (const void *)(uintptr_t)(from->mmap_addr + at);

		print_range(entry->base, entry->length, entry->type);
		at += entry->size + 4;
	}
	for (uint32_t i = 0; i < from->mods_count; i++) {
		const struct module *module = (const struct module *)(uintptr_t)from->mods_addr + i;

		print_module(module->start, module->end - module->start, (const char *)(uintptr_t)module->string);
	}
	if (from->flags & 1 << 5)
		print(symbols(from) > 4 ? "symbols: some\n" : "symbols: none\n");
	end(42);
}
