; Moves the head back and forth faster than the device reads it, over a buffer that holds only 'R'.
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
