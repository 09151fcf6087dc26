// A driver for virtio devices over MMIO, for guests of a few lines in C. A test appends a function `guest`.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

// Where the driver puts its tables and buffers.
enum { STACK = 0xf0000, RINGS = 0x400000, TABLES = 0x500000, HEADER = 0x600000, STATUS = 0x600100, DATA = 0x1000000 };
enum { MIB = 1 << 20 };
enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { READ_DISK = 0, WRITE_DISK = 1, FLUSH_DISK = 4 };

static void out8(u16 port, u8 value) { __asm__ volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static void print(const char *text) { while (*text) out8(0x3f8, *text++); }
static void print_digit(u32 value) { out8(0x3f8, '0' + value % 10); }
static void power_off(void) { out8(0x600, 0x34); for (;;); }

static void store(u64 at, u32 value) { __asm__ volatile("movl %0, (%1)" : : "r"(value), "r"(at) : "memory"); }
static u32 load(u64 at) { u32 value; __asm__ volatile("movl (%1), %0" : "=r"(value) : "r"(at) : "memory"); return value; }
static volatile u8 *byte(u64 at) { return (volatile u8 *)at; }
static volatile u16 *word(u64 at) { return (volatile u16 *)at; }

// The registers of device `n`.
static u64 device(u32 n) { return 0xd0000000 + n * 0x1000ul; }
// The three tables of queue `n`: descriptors, available ring, used ring.
static u64 descriptors(u32 n) { return RINGS + n * 0x4000ul; }
static u64 available(u32 n) { return RINGS + n * 0x4000ul + 0x1000; }
static u64 used(u32 n) { return RINGS + n * 0x4000ul + 0x2000; }

// The number of entries of each queue: the most that the device has.
static u32 entries;

static void set_up_queue(u64 device, u32 n) {
    store(device + 0x30, n);
    entries = load(device + 0x34);
    store(device + 0x38, entries);
    store(device + 0x80, descriptors(n)); store(device + 0x84, 0);
    store(device + 0x90, available(n)); store(device + 0x94, 0);
    store(device + 0xa0, used(n)); store(device + 0xa4, 0);
    store(device + 0x44, 1);
}

// Starts a device that has `queues` queues and accepts these features.
static void start(u64 device, u32 features, u32 queues) {
    for (u32 status = 0; status < 3; status++) store(device + 0x70, status == 2 ? 3 : status);
    store(device + 0x24, 0); store(device + 0x20, features);
    store(device + 0x24, 1); store(device + 0x20, 1);
    store(device + 0x70, 0xb);
    for (u32 n = 0; n < queues; n++) set_up_queue(device, n);
    store(device + 0x70, 0xf);
}

static void describe(u64 table, u32 entry, u64 start, u32 len, u16 flags) {
    u64 at = table + entry * 16ul;
    *(volatile u64 *)at = start;
    *(volatile u32 *)(at + 8) = len;
    *word(at + 12) = flags;
    *word(at + 14) = entry + 1;
}

// Makes the chain that begins at `head` available, and notifies the device.
static void submit(u64 device, u32 queue, u16 head) {
    u16 index = *word(available(queue) + 2);
    *word(available(queue) + 4 + index % entries * 2) = head;
    *word(available(queue) + 2) = index + 1;
    store(device + 0x50, queue);
}

// Waits until the device has used all chains, or needs a reset. Returns 0 if it needs a reset.
static int wait(u64 device, u32 queue) {
    while (*word(used(queue) + 2) != *word(available(queue) + 2))
        if (load(device + 0x70) & 0x40) return 0;
    return 1;
}

static void header(u32 type, u64 sector) {
    *(volatile u32 *)HEADER = type;
    *(volatile u64 *)(HEADER + 8) = sector;
    *byte(STATUS) = 9;
}

// Performs a request of the disk with one buffer, and prints its status. FLUSH has no buffer.
static void request(u64 device, u32 type, u64 sector, u64 data, u32 len) {
    header(type, sector);
    u16 to_driver = type == READ_DISK ? WRITE : 0;
    describe(descriptors(0), 0, HEADER, 16, NEXT);
    describe(descriptors(0), 1, data, len, type == FLUSH_DISK ? WRITE : NEXT | to_driver);
    if (type == FLUSH_DISK) describe(descriptors(0), 1, STATUS, 1, WRITE);
    else describe(descriptors(0), 2, STATUS, 1, WRITE);
    submit(device, 0, 0);
    print_digit(wait(device, 0) ? *byte(STATUS) : 8);
}

// Submits one request for 4064 MiB: 254 times the same buffer of 16 MiB.
static void submit_huge_request(u64 device, u32 type) {
    header(type, 0);
    describe(TABLES, 0, HEADER, 16, NEXT);
    for (u32 entry = 1; entry < 255; entry++)
        describe(TABLES, entry, DATA, 16 * MIB, NEXT | (type == READ_DISK ? WRITE : 0));
    describe(TABLES, 255, STATUS, 1, WRITE);
    describe(descriptors(0), 0, TABLES, 256 * 16, INDIRECT);
    submit(device, 0, 0);
}

__attribute__((used)) static void guest(void);
__asm__(".section .start, \"ax\"\n.globl _start\n_start: mov $0xf0000, %esp\ncall guest\nhlt\n.text\n");
