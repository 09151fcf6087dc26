/* A guest to try your VMM with: it prints a text that stands behind its code. */
	.intel_syntax noprefix
	.code16
start:
	mov	si, offset text         /* SI is the address of the next byte */
next:
	mov	al, [si]
	cmp	al, 0                   /* a zero ends the text */
	je	done
	out	0xe9, al
	add	si, 1
	jmp	next
done:
	hlt
text:
	.asciz	"Hello from real mode\n"
