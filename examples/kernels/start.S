# The first instructions of the example kernels. All three protocols enter them in 32-bit protected mode with flat segments
# and without paging. The stack is the kernel's own.
	.section .text
	.globl start
start:
	movl $stack_top, %esp
	pushl %ebx		# the address of the boot information
	pushl %eax		# the magic number
	call kernel_main
1:	hlt
	jmp 1b

	.section .bss
	.align 16
	.skip 0x4000
stack_top:

	.section .note.GNU-stack, "", @progbits
