/*
 * The channel between the preloaded library and the observer: one file, which both access.
 *
 * `observe/src/preload/channel.rs` has the same layout. The file begins with a page of `struct control`, a page with the
 * states of the rings, and then the rings. A ring is a page of `struct ring` and RECORDS records.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

enum { PAGE = 4096, RINGS = 1024, RECORDS = 4096, RECORD = 64, RING = PAGE + RECORDS * RECORD };

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
};

#define MAGIC 0x6576726573626f31ul

/* The head of a ring. The library writes the first part, and the observer the last. */
struct ring {
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
	 * the data. The values that the program gave to a read are those at the next entry.
	 */
	u64 details[4];
};

_Static_assert(sizeof(struct record) == RECORD, "the size of a record");
_Static_assert(sizeof(struct control) <= PAGE && RINGS * 4 <= PAGE, "one page each");

/* A message about a new ring. With it come two descriptors: KVM's counters of the vCPU, and the vCPU. */
struct message {
	u32 magic;
	u32 ring;
};
