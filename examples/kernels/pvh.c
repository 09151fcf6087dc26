// A PVH kernel: prints what its loader tells it. (Xen docs/misc/pvh.pandoc, and xen/include/public/arch-x86/hvm/start_info.h.)
#include "kernel.h"

#define START_MAGIC 0x336ec578
// XEN_ELFNOTE_PHYS32_ENTRY.
#define PHYS32_ENTRY 18

extern char start[];

__attribute__((section(".note.Xen"), aligned(4), used)) static const struct {
	uint32_t name_size, size, type;
	char name[4];
	const void *entry;
} note = { 4, sizeof(void *), PHYS32_ENTRY, "Xen", start };

struct start_info {
	uint32_t magic, version, flags, modules;
	uint64_t modlist, cmdline, rsdp, memmap;
	uint32_t memmap_entries, reserved;
};

struct module {
	uint64_t start, size, cmdline, reserved;
};

struct entry {
	uint64_t start, size;
	uint32_t type, reserved;
};

void kernel_main(uint32_t unused, const struct start_info *info)
{
	const struct entry *map = (const void *)(uintptr_t)info->memmap;
	const struct module *modules = (const void *)(uintptr_t)info->modlist;

	(void)unused;
	if (info->magic != START_MAGIC) {
		print_named("not a PVH loader: magic ", info->magic);
		end(1);
	}
	print_named("PVH, version ", info->version);
	print("\ncommand line: ");
	print((const char *)(uintptr_t)info->cmdline);
	print("\n");
	for (uint32_t i = 0; i < info->memmap_entries; i++)
		print_range(map[i].start, map[i].size, map[i].type);
	for (uint32_t i = 0; i < info->modules; i++) {
		uint64_t text = modules[i].cmdline;

		// 0: the module has no text.
		print_module(modules[i].start, modules[i].size, text ? (const char *)(uintptr_t)text : "");
	}
	end(42);
}
