/* Bits of the control registers (Intel SDM volume 3, section 2.5) and of EFER (section 2.2.1). */
#ifndef VCPU_H
#define VCPU_H

#define CR0_PE 1u
#define CR0_MP (1u << 1)
#define CR0_ET (1u << 4)
#define CR0_NE (1u << 5)
#define CR0_WP (1u << 16)
#define CR0_AM (1u << 18)
#define CR0_PG (1u << 31)

#define CR4_PAE (1u << 5)

#define EFER_LME (1u << 8)
#define EFER_LMA (1u << 10)

/* Bits of an entry of a page table (section 4.5). PDE64_PS makes an entry of the page directory a page of 2 MiB. */
#define PDE64_PRESENT 1u
#define PDE64_RW (1u << 1)
#define PDE64_USER (1u << 2)
#define PDE64_PS (1u << 7)

#endif
