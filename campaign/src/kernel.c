/*
 * The kernel of the campaign, for `vmm boot` with a disk as the first virtio device. Its command line is
 *
 *   plain            writes a sector, flushes it, reads it back, and powers off; resets the machine if that fails
 *   hostile SEED N   sets up N queues against the rules, of any device, and checks after every eighth that the disk
 *                    still works
 *
 * virtio 1.2, sections 2.7 (rings), 4.2.2 (registers) and 5.2.6 (requests of a disk).
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define DEVICES 0xd0000000ul
#define MEMORY (16ul << 20)
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { SIZE = 64, TABLE = 0x400000, DRIVER = 0x410000, DEVICE = 0x420000, HEADER = 0x430000, DATA = 0x500000 };
enum { READ_SECTOR = 0, WRITE_SECTOR = 1, FLUSH = 4 };

__asm__(".section .start, \"ax\"\n.globl _start\n_start: mov $0x300000, %esp\nmov %rsi, %rdi\ncall kernel\n"
        "1: jmp 1b\n.text\n");

static void out(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port)); }
static void text(const char *from) { while (*from) out(0x3f8, *from++); }
static void power_off(void) { out(0x600, 0x34); for (;;) ; }

static void number(u32 value) {
    char digits[12];
    int at = 11;
    digits[at] = 0;
    do digits[--at] = '0' + value % 10; while (value /= 10);
    text(digits + at);
}

static volatile u32 *word(u64 place) { return (volatile u32 *)place; }
static volatile u16 *half(u64 place) { return (volatile u16 *)place; }
static void put(u64 device, u32 at, u32 value) { *word(device + at) = value; }
static u32 get(u64 device, u32 at) { return *word(device + at); }

/* xorshift64 */
static u64 state;
static u32 any(void) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return state >> 20;
}
static u32 below(u32 end) { return any() % end; }
static int one_in(u32 n) { return below(n) == 0; }

/* An address that a driver should not give. Never one of this kernel. */
static u64 wrong_place(void) {
    switch (below(9)) {
    case 0: return MEMORY - below(600);
    case 1: return ~0ul - below(600);
    case 2: return DEVICES + below(0x3000);
    case 3: return 0xfee00000ul + below(0x1000);
    case 4: return 0xfec00000ul;
    case 5: return TABLE + below(0x200);
    case 6: return DEVICE + below(0x80);
    case 7: return MEMORY + ((u64)any() << 20);
    default: return DATA + below(0x1000);
    }
}

static void negotiate(u64 device, u32 low) {
    put(device, 0x70, 0);
    put(device, 0x70, 1);
    put(device, 0x70, 3);
    put(device, 0x24, 0);
    put(device, 0x20, low);
    put(device, 0x24, 1);
    put(device, 0x20, 1);
    put(device, 0x70, 11);
}

static void queue(u64 device, u32 index, u32 size, u64 table, u64 driver, u64 used) {
    put(device, 0x30, index);
    put(device, 0x38, size);
    put(device, 0x80, table);
    put(device, 0x84, table >> 32);
    put(device, 0x90, driver);
    put(device, 0x94, driver >> 32);
    put(device, 0xa0, used);
    put(device, 0xa4, used >> 32);
    put(device, 0x44, 1);
}

static void descriptor(u64 table, u32 index, u64 start, u32 size, u16 flags, u16 next) {
    u64 place = table + 16ul * index;
    *(volatile u64 *)place = start;
    *word(place + 8) = size;
    *half(place + 12) = flags;
    *half(place + 14) = next;
}

static void clear(u64 place, u32 size) {
    for (u32 at = 0; at < size; at += 8) *(volatile u64 *)(place + at) = 0;
}

/* Returns 1 if the device used a buffer, 0 if it needs a reset or does nothing for a while. */
static int wait(u64 device, u32 times) {
    while (times--) {
        if (*half(DEVICE + 2)) return 1;
        if (get(device, 0x70) & 64) return 0;
    }
    return 0;
}

/* Makes one request to the disk, as a driver should. Returns 1 if it succeeds. */
static int request(u32 kind, u64 sector) {
    clear(DRIVER, 0x200);
    clear(DEVICE, 0x400);
    negotiate(DEVICES, 1 << 9);
    queue(DEVICES, 0, SIZE, TABLE, DRIVER, DEVICE);
    put(DEVICES, 0x70, 15);
    *word(HEADER) = kind;
    *word(HEADER + 4) = 0;
    *(volatile u64 *)(HEADER + 8) = sector;
    *word(HEADER + 16) = 0xff;
    descriptor(TABLE, 0, HEADER, 16, NEXT, kind == FLUSH ? 2 : 1);
    descriptor(TABLE, 1, DATA, 512, NEXT | (kind == READ_SECTOR ? WRITE : 0), 2);
    descriptor(TABLE, 2, HEADER + 16, 1, WRITE, 0);
    *half(DRIVER + 4) = 0;
    *half(DRIVER + 2) = 1;
    put(DEVICES, 0x50, 0);
    return wait(DEVICES, 3000000) && *(volatile u8 *)(HEADER + 16) == 0;
}

static int fails(const char *why) {
    text("the disk does not work: ");
    text(why);
    text("\n");
    return 0;
}

/* Other devices may still work on the memory of the queue, and print. */
static void reset_all(void) {
    for (u64 device = DEVICES; device < DEVICES + 0x3000; device += 0x1000) put(device, 0x70, 0);
}

/* Writes a sector and reads it back. Returns 1 if the content is right. */
static int disk_works(u64 sector) {
    reset_all();
    for (u32 at = 0; at < 512; at += 4) *word(DATA + at) = 0xc0ffee00 + at + sector;
    if (!request(WRITE_SECTOR, sector)) return fails("a write");
    if (!request(FLUSH, 0)) return fails("a flush");
    clear(DATA, 512);
    if (!request(READ_SECTOR, sector)) return fails("a read");
    for (u32 at = 0; at < 512; at += 4)
        if (*word(DATA + at) != 0xc0ffee00 + at + sector) return fails("the content");
    return 1;
}

static u32 wrong_size(void) {
    switch (below(6)) {
    case 0: return 0;
    case 1: return ~0u - below(20);
    case 2: return below(0x100000);
    default: return below(2048);
    }
}

/* Fills a table with a request, and breaks some of its rules. */
static void wrong_table(u64 table, u32 entries, int may_refer) {
    static const u32 kinds[] = {0, 0, 1, 1, 4, 8, 13, 77};
    *word(HEADER) = kinds[below(8)];
    *(volatile u64 *)(HEADER + 8) = one_in(6) ? (u64)any() << 30 : below(140);
    for (u32 index = 0; index < entries; index++) {
        int last = index + 1 == entries;
        u64 start = index == 0 ? HEADER : last ? HEADER + 16 : DATA + 0x1000ul * below(64);
        u32 size = index == 0 ? 16 : last ? 1 : 512 * below(3);
        u16 flags = (last ? 0 : NEXT) | (index == 0 ? 0 : below(3) ? WRITE : 0), next = index + 1;
        if (one_in(6)) start = wrong_place();
        if (one_in(6)) size = wrong_size();
        if (one_in(8)) flags = below(8);
        if (one_in(8)) next = below(80);
        if (may_refer && one_in(5)) {
            start = one_in(4) ? wrong_place() : TABLE + 0x4000;
            size = one_in(3) ? wrong_size() : 16 * below(12);
            flags = INDIRECT | (one_in(4) ? NEXT : 0) | (one_in(8) ? WRITE : 0);
        }
        descriptor(table, index, start, size, flags, next);
    }
}

static void hostile(u64 device) {
    static const u32 sizes[] = {64, 64, 64, 16, 1, 0, 3, 65, 256, 512, 0x10040, ~0u};
    clear(DRIVER, 0x200);
    clear(DEVICE, 0x400);
    negotiate(device, one_in(3) ? any() : (u32)below(2) << 28 | (u32)below(2) << 29 | (u32)below(2) << 9);
    u32 queues = 1 + below(3);
    for (u32 index = 0; index < queues; index++) {
        u64 places[3] = {TABLE, DRIVER, DEVICE};
        if (one_in(5)) places[below(3)] = wrong_place();
        if (one_in(16)) places[0] = places[1] = places[2] = TABLE;
        queue(device, index, sizes[one_in(4) ? below(12) : 0], places[0], places[1], places[2]);
    }
    wrong_table(TABLE, 1 + below(12), 1);
    wrong_table(TABLE + 0x4000, 1 + below(12), one_in(8));
    u32 heads = 1 + below(6);
    for (u32 index = 0; index < heads; index++) *half(DRIVER + 4 + 2 * index) = one_in(4) ? any() : below(12);
    *half(DRIVER + 2) = one_in(5) ? any() : heads;
    put(device, 0x70, 15);
    u32 notifications = 1 + below(20);
    while (notifications--) put(device, 0x50, one_in(4) ? any() : below(queues));
    wait(device, 20 + below(100));
    /* Writes while the device works. */
    if (one_in(3)) descriptor(TABLE, below(12), wrong_place(), wrong_size(), below(8), below(20));
    if (one_in(3)) put(device, below(0x40) * 4, any());
}

void kernel(u64 parameters) {
    const char *line = (const char *)(u64)*word(parameters + 0x228);
    if (*line != 'h') {
        if (!disk_works(3)) out(0x64, 0xfe);
        text("the disk works\n");
        power_off();
    }
    u64 values[2] = {0, 0};
    for (int index = 0; index < 2; index++) {
        while (*line && *line != ' ') line++;
        while (*line == ' ') line++;
        while (*line >= '0' && *line <= '9') values[index] = values[index] * 10 + (*line++ - '0');
    }
    state = values[0] | 1;
    for (u32 round = 0; round < values[1]; round++) {
        u64 device = DEVICES + 0x1000ul * below(3);
        if (get(device, 0) == 0x74726976) hostile(device);
        if (round % 8 == 7 && !disk_works(below(100))) {
            text("set-up ");
            number(round);
            text(get(DEVICES, 0x70) & 64 ? ", the device needs a reset\n" : ", the device waits\n");
            power_off();
        }
    }
    reset_all();
    text("\nevery set-up is over\n");
    power_off();
}
