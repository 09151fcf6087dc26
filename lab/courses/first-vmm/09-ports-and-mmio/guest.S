/* A guest to try your VMM with: it adds three numbers at port 0x30, and stores a letter in the register at 0x200000. */
	.intel_syntax noprefix
	.code64
start:
	mov	eax, 30
	out	0x30, eax               /* 4 bytes */
	mov	eax, 20
	out	0x30, ax                /* 2 bytes */
	mov	eax, 15
	out	0x30, al                /* 1 byte */
	in	eax, 0x30               /* 65, which is the letter A */
	mov	rbx, 0x200000
	mov	[rbx + 3], al
	mov	al, [rbx + 3]
	out	0xe9, al
	mov	rsi, offset text
	mov	edx, 0xe9
	mov	ecx, offset end
	sub	ecx, offset text
	rep	outsb                   /* all bytes of the text */
	hlt
text:
	.ascii	" is the sum of 30, 20 and 15\n"
end:
