/* A guest to try your VMM with: 1000 writes to port 0x80, 500 stores to 0x200000, and a halt. */
	.intel_syntax noprefix
	.code64
start:
	mov	ecx, 1000
ports:
	out	0x80, al
	sub	ecx, 1
	jnz	ports
	mov	ecx, 500
	mov	rbx, 0x200000
stores:
	mov	[rbx], ecx
	sub	ecx, 1
	jnz	stores
	hlt
