/*
 * A game for a machine with a BIOS: type the letter that is shown, before its time is over. It waits for keys with int 16h,
 * and measures the time with the ticks of int 1Ch.
 *
 *     vmm examples/kernels/build/game.img
 *
 * The letters are a to e. The exit code is the number of right keys.
 */
	.code16
	.globl	_start
_start:
	xorw	%ax, %ax
	movw	%ax, %ds
	movw	%ax, %es
	movw	%ax, %ss
	movw	$_start, %sp
	movw	$3, %ax			/* text of 80 columns */
	int	$0x10
	cli
	movw	$tick, 4 * 0x1c
	movw	%ax, 4 * 0x1c + 2
	movw	$0, 4 * 0x1c + 2
	sti
	movw	$title, %si
	call	print
	movb	$'a', %dl
	xorb	%dh, %dh		/* right keys */
round:
	movb	%dl, %al
	call	put
	movb	$'?', %al
	call	put
	movw	$18 * 5, left		/* five seconds */
wait:
	movb	$1, %ah			/* Is there a key? */
	int	$0x16
	jnz	key
	cmpw	$0, left
	jle	late
	hlt
	jmp	wait
key:
	movb	$0, %ah
	int	$0x16
	cmpb	%dl, %al
	jne	wrong
	incb	%dh
	movw	$right, %si
	jmp	next
wrong:
	movw	$no, %si
	jmp	next
late:
	movw	$slow, %si
next:
	call	print
	incb	%dl
	cmpb	$'e', %dl
	jbe	round
	hlt				/* The keys may have been faster than a tick. */
	movw	$ticks, %si
	call	print
	cmpw	$0, count
	je	1f
	movw	$some, %si
	jmp	2f
1:	movw	$none, %si
2:	call	print
	movb	%dh, %al
	outb	%al, $0xf4
1:	hlt
	jmp	1b

tick:
	incw	%cs:count
	decw	%cs:left
	iret

put:
	movb	$0x0e, %ah
	movw	$7, %bx
	int	$0x10
	ret

print:
	lodsb
	testb	%al, %al
	jz	1f
	call	put
	jmp	print
1:	ret

count:	.word	0
left:	.word	0
title:	.asciz	"type the letter\r\n"
right:	.asciz	" right\r\n"
no:	.asciz	" wrong\r\n"
slow:	.asciz	" too late\r\n"
ticks:	.asciz	"the clock "
some:	.asciz	"ticks\r\n"
none:	.asciz	"stands still\r\n"

	.org	510
	.byte	0x55, 0xaa
