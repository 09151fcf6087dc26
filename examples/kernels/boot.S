/*
 * A boot disk of three sectors for a machine with a BIOS. The first sector prints a text, reads the second one by cylinder,
 * head and sector, and the third one by its number; both print, too. The second one also lists the usable memory.
 *
 *     vmm examples/kernels/build/boot.img
 *
 * It ends with the exit code 42.
 */
	.code16
	.globl	_start
_start:
	ljmp	$0, $1f			/* Some BIOSes enter at 07c0:0000. */
1:	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$_start, %sp
	sti
	movb	%dl, drive
	movw	$hello, %si
	call	print

	movw	$0x0201, %ax		/* read one sector */
	movw	$second, %bx
	movw	$0x0002, %cx		/* cylinder 0, sector 2 */
	movb	$0, %dh
	movb	drive, %dl
	int	$0x13
	jc	failed
	jmp	second

failed:
	movw	$bad, %si
	call	print
	movb	$1, %al
	outb	%al, $0xf4
1:	hlt
	jmp	1b

/* Prints the text at DS:SI, which ends with a zero. */
print:
	lodsb
	testb	%al, %al
	jz	1f
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	jmp	print
1:	ret

/* Prints AX as four hexadecimal digits. */
print_word:
	movw	$4, %cx
1:	rolw	$4, %ax
	pushw	%ax
	andb	$0x0f, %al
	addb	$'0', %al
	cmpb	$'9', %al
	jbe	2f
	addb	$'a' - '0' - 10, %al
2:	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	popw	%ax
	loop	1b
	ret

drive:	.byte	0
hello:	.asciz	"hello from the boot sector\r\n"
bad:	.asciz	"the disk cannot be read\r\n"

	.org	510
	.byte	0x55, 0xaa

second:
	movw	$of_second, %si
	call	print
	xorl	%ebx, %ebx
1:	movl	$0xe820, %eax
	movl	$0x534d4150, %edx
	movl	$20, %ecx
	movw	$range, %di
	int	$0x15
	jc	2f
	cmpl	$1, range + 16
	jne	3f
	pushl	%ebx
	movw	$memory, %si
	call	print
	movw	range + 2, %ax
	call	print_word
	movw	range, %ax
	call	print_word
	movw	$newline, %si
	call	print
	popl	%ebx
3:	testl	%ebx, %ebx
	jnz	1b
2:
	movb	$0x41, %ah		/* Are there extensions? */
	movw	$0x55aa, %bx
	movb	drive, %dl
	int	$0x13
	jc	failed
	cmpw	$0xaa55, %bx
	jne	failed
	movb	$0x42, %ah
	movw	$packet, %si
	movb	drive, %dl
	int	$0x13
	jc	failed
	jmp	third

packet:	.byte	16, 0
	.word	1			/* a sector */
	.word	third, 0		/* to 0:third */
	.quad	2
of_second: .asciz "hello from the second sector\r\n"
memory:	.asciz	"memory from "
newline: .asciz	"\r\n"
	.balign	4
range:	.skip	24

	.org	1024
third:
	movw	$of_third, %si
	call	print
	movb	$42, %al
	outb	%al, $0xf4
1:	hlt
	jmp	1b
of_third: .asciz "hello from the third sector\r\n"
	.org	1536
