/* A guest to try your VMM with: it uses ports and an address where nothing is, prints a text, and halts. */
	.intel_syntax noprefix
	.code64
start:
	out	0x80, al                /* no device */
	in	al, 0x60                /* no device: AL must be 0xff now */
	cmp	al, 0xff
	jne	done
	mov	rbx, 0x200000
	mov	[rbx], al               /* no memory */
	mov	rsi, offset text
next:
	mov	al, [rsi]
	cmp	al, 0                   /* a zero ends the text */
	je	done
	out	0xe9, al
	add	rsi, 1
	jmp	next
done:
	hlt
text:
	.asciz	"The guest has met no device, and goes on\n"
