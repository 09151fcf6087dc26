/*
 * The channel between the preloaded library and the observer: one file, which both access.
 *
 * `observe/src/preload/channel.rs` has the same layout. The file begins with a page of `struct control`, a page with the
 * states of the rings, and then the rings. A ring is a page of `struct ring` and RECORDS records. After the rings comes the
 * log, with the calls other than KVM_RUN and with the stops of all processes, in order.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { PAGE = 4096, RINGS = 1024, RECORDS = 4096, RECORD = 64, RING = PAGE + RECORDS * RECORD };

/* The rings begin here. A process maps the first ones at its start, and the observer has reserved the pages of a part of them. */
enum { RINGS_AT = 2 * PAGE, EARLY_RINGS = 64, RESERVED_RINGS = 16 };

/* The states of a ring. The library takes a free one, and the observer frees it when it has read all of its records. */
enum { FREE, TAKEN, LIVE, CLOSED };

/* Counts of all processes. */
struct control {
	u64 magic;
	/* Set by the observer: nothing is recorded any more. */
	u32 ended;
	/* The number of VMs, which is also the number of the newest one. */
	u32 vms;
	/* The number of vCPUs that are not recorded, because a resource is missing. */
	u32 unrecorded;
	/* The number of rings from the start of the table that have ever been used. */
	u32 used;
	/*
	 * Written by the observer: STOP_ENTRY and STOP_HALT, FILTERED if the program has a filter from its start, and
	 * ISOLATED if the program has a PID namespace.
	 */
	u32 wants;
	/* The number of calls that are not in the log. */
	u32 lost_calls;
	/* The number of short pauses in which vCPUs waited for answers. */
	u32 waited;
	/* The number of pieces that were taken from the log, and of those that the observer has read. */
	u64 taken;
	u64 finished;
};

enum { STOP_ENTRY = 1, STOP_HALT = 2, FILTERED = 4, ISOLATED = 8 };

#define MAGIC 0x6576726573626f31ul

/* The head of a ring. The library writes the first part, and the observer the last. */
struct ring {
	/* The process, as the observer sees it. */
	u32 pid;
	/* The number of the VM, from 1, and that of the vCPU, which the program gave to KVM_CREATE_VCPU. */
	u32 vm;
	u32 vcpu;
	u32 pad;
	/* The number of records. The last one may lack its answer. */
	u64 noted;
	/* The number of records that are complete. */
	u64 done;
	/* The number of exits that found the ring full for too long. */
	u64 lost;
	u64 unused[11];
	/* The number of records that the observer has read. */
	u64 read;
	/* The last stop of the vCPU that the observer has answered. */
	u64 answered;
};

/* One return of KVM_RUN. Times are readings of the time-stamp counter. */
struct record {
	u64 entered;
	u64 left;
	/* The next entry; 0 if there was none. */
	u64 answered;
	/* The result of the call: 0 or more, or a negative errno. */
	int result;
	u32 reason;
	/*
	 * The first bytes of the description of the exit in `kvm_run`. For port I/O, its 16 bytes, and the first 16 bytes of
	 * the data. The values that the program gave to a read are those at the next entry. The first 8 bytes that were there
	 * before are then in the second word for port I/O, and in the last word for MMIO.
	 */
	u64 details[4];
};

_Static_assert(sizeof(struct record) == RECORD && sizeof(struct ring) == 144, "the size of a record and of a ring");
_Static_assert(sizeof(struct control) <= PAGE && RINGS * 4 <= PAGE, "one page each");

/*
 * A piece of the log. An entry is one piece or several in a row. Its first bytes are a `struct entry`, then what `parts`
 * says, and then the structure of the call.
 */
enum { PIECES = 2048, PIECE = 1024, PIECE_BYTES = PIECE - 16, LOG = PIECES * PIECE };

struct piece {
	/* The position of the piece, from 1, over all laps. It is written last. */
	u64 position;
	/* The number of pieces of the entry. */
	u32 pieces;
	/* The number of bytes that are used. */
	u32 size;
	u8 bytes[PIECE_BYTES];
};

/* The kinds of entries, the objects of calls, and the parts that follow. */
enum { CALLED, FIRST_ENTRY, EXITED, REFUSED };
enum { ON_SYSTEM, ON_VM, ON_VCPU };
enum { HAS_RECORD = 1, HAS_REGISTERS = 2 };

struct entry {
	u32 kind;
	/* The process, as the observer sees it. */
	u32 pid;
	/* The ring of the vCPU that waits. Its stop has the position of the first piece. */
	u32 ring;
	u32 target;
	u32 vm;
	u32 vcpu;
	u32 request;
	int result;
	u64 argument;
	u32 parts;
	u32 unused;
};

/* `kvm_regs` and `kvm_sregs`. */
enum { REGS = 144, SREGS = 312, MOST_DATA = 16384 };

_Static_assert(sizeof(struct piece) == PIECE && sizeof(struct entry) == 48, "the size of a piece and of an entry");

/*
 * A message about a new ring, or with the number WAKE one that only wakes the observer. With the first come two
 * descriptors: KVM's counters of the vCPU, and the vCPU.
 */
enum { WAKE = 0xffffffff };

struct message {
	u32 magic;
	u32 ring;
};
