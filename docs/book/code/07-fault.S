	.intel_syntax noprefix
	.globl	_start
_start:
	mov	rbx, 0x7000000000       /* an address that no page table maps */
	mov	rax, [rbx]
	hlt
