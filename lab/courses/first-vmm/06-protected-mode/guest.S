/* A guest to try your VMM with: 32-bit code, with addresses above 1 MiB. */
	.intel_syntax noprefix
	.code32
start:
	mov	esi, offset text        /* ESI is the address of the next byte */
	mov	edi, 0x180000           /* EDI is an address above 1 MiB */
next:
	mov	al, [esi]
	mov	[edi], al               /* store the byte there, and print what is there */
	mov	al, [edi]
	cmp	al, 0                   /* a zero ends the text */
	je	done
	out	0xe9, al
	add	esi, 1
	add	edi, 1
	jmp	next
done:
	hlt
text:
	.asciz	"Hello from protected mode\n"
