/* A guest to try your VMM with: 64-bit code. It writes at the virtual address 1 GiB, and reads the same bytes at 2 MiB. */
	.intel_syntax noprefix
	.code64
start:
	mov	rsi, offset text        /* RSI is the address of the next byte */
	mov	r8, 0x40000000          /* 1 GiB */
	mov	r9, 0x200000            /* 2 MiB: the same memory */
next:
	mov	al, [rsi]
	mov	[r8], al
	mov	al, [r9]
	cmp	al, 0                   /* a zero ends the text */
	je	done
	out	0xe9, al
	add	rsi, 1
	add	r8, 1
	add	r9, 1
	jmp	next
done:
	hlt
text:
	.asciz	"Hello from long mode\n"
