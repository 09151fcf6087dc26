	.intel_syntax noprefix
	.code16
	.globl	_start
_start:
	mov	al, 'H'         /* AL = 'H' */
	out	0xe9, al        /* send AL to port 0xe9 */
	mov	al, 'i'
	out	0xe9, al
	mov	ax, 42
	hlt                     /* stop */
