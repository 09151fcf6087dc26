/* A guest to try your VMM with: it prints the vendor of CPUID with a hypercall, and ends with the hypercall halt(3). */
	.intel_syntax noprefix
	.code64
start:
	mov	eax, 0x40000000
	cpuid
	mov	rdi, offset vendor
	mov	[rdi], ebx
	mov	[rdi + 4], ecx
	mov	[rdi + 8], edx
	mov	esi, 13                 /* the vendor and the end of the line */
	mov	eax, 1                  /* print */
	mov	edx, 0x500
	out	dx, eax
	mov	edi, 3
	mov	eax, 0                  /* halt */
	out	dx, eax
vendor:
	.ascii	"            \n"
