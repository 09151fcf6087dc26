/*
 * A guest: the program that runs inside the virtual machine. It prints "KVM" and a newline to port 0xe9, leaves the sum of
 * BX and CX in AX, and stops. BX and CX have other values in each run.
 */
	.intel_syntax noprefix
	.code16
start:
	//{
	//= /* TODO: print the letters 'K', 'V', 'M' and '\n' to port 0xe9, each with a mov to AL and an out. */
	mov	al, 'K'
	out	0xe9, al
	mov	al, 'V'
	out	0xe9, al
	mov	al, 'M'
	out	0xe9, al
	mov	al, '\n'
	out	0xe9, al
	//= /* TODO: copy BX to AX with a mov, and add CX to AX with an add. */
	mov	ax, bx
	add	ax, cx
	//}
	hlt
