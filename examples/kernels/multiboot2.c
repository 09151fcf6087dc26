// A multiboot 2 kernel: prints what its boot loader tells it. (Multiboot specification 2.0.)
#include "kernel.h"

#define HEADER_MAGIC 0xe85250d6
#define LOADER_MAGIC 0x36d76289

struct header {
	uint32_t magic, architecture, length, checksum;
	// Asks for the memory map, type 6, and for the loader's name, type 2.
	struct {
		uint16_t type, flags;
		uint32_t size, types[2];
	} request;
	struct {
		uint16_t type, flags;
		uint32_t size;
	} end;
};

__attribute__((section(".header"), aligned(8), used)) static const struct header header = {
	HEADER_MAGIC, 0, sizeof(struct header), -(uint32_t)(HEADER_MAGIC + sizeof(struct header)),
	{ 1, 0, 16, { 6, 2 } },
	{ 0, 0, 8 },
};

struct tag {
	uint32_t type, size;
};

struct module {
	uint32_t start, end;
	char text[];
};

struct map {
	uint32_t entry_size, version;
	struct {
		uint64_t base, length;
		uint32_t type, reserved;
	} entries[];
};

// The number of symbols, from the tag with the section headers of the ELF file.
static uint32_t symbols(const uint32_t *tag)
{
	uint32_t count = tag[0], size = tag[1];
	int is_64 = size == 64;

	for (uint32_t i = 0; i < count; i++) {
		const uint32_t *section = (const void *)((const char *)(tag + 3) + i * size);

		if (section[1] == 2 && section[is_64 ? 4 : 3])
			return section[is_64 ? 8 : 5] / (is_64 ? 24 : 16);
	}
	return 0;
}

static void print_map(const struct map *map, uint32_t size)
{
	for (uint32_t i = 0; 8 + (i + 1) * map->entry_size <= size; i++)
		print_range(map->entries[i].base, map->entries[i].length, map->entries[i].type);
}

static void print_tag(const struct tag *tag)
{
	const void *data = tag + 1;
	const uint32_t *words = data;
	const struct module *module = data;

	switch (tag->type) {
	case 1:
		print("command line: ");
		print(data);
		print("\n");
		break;
	case 2:
		print("multiboot 2, loader: ");
		print(data);
		print("\n");
		break;
	case 3:
		print_module(module->start, module->end - module->start, module->text);
		break;
	case 4:
		print_named("lower memory: ", words[0]);
		print_named(" KiB, upper memory: ", words[1]);
		print(" KiB\n");
		break;
	case 6:
		print_map(data, tag->size - sizeof(*tag));
		break;
	case 9:
		print(symbols(data) > 4 ? "symbols: some\n" : "symbols: none\n");
		break;
	}
}

void kernel_main(uint32_t magic, const char *information)
{
	if (magic != LOADER_MAGIC) {
		print_named("not a multiboot 2 loader: magic ", magic);
		end(1);
	}
	for (const struct tag *tag = (const void *)(information + 8); tag->type;) {
		print_tag(tag);
		tag = (const void *)((const char *)tag + ((tag->size + 7) & ~7u));
	}
	end(42);
}
