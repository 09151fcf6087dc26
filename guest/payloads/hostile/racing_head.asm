; A head that jumps to and fro faster than the device reads, over a buffer full of 'R'.
%include "driver.inc"
    begin
    fill 'R', 256
    mov edx, 500
.again:
    mov dword [rdi + 0x10], 200
    mov dword [rdi + 0x10], 7
    dec edx
    jnz .again
    finish
