; Fills the queue completely with one store of the head, twice. The second time wraps.
%include "driver.inc"
    begin
    reset
    config
    ready
    movzx ebp, word [rdi + 4]
    fill 'x', ebp
    mov edx, 2
.again:
    add ecx, ebp
    dec ecx
    cmp ecx, ebp
    jb .publish
    sub ecx, ebp
.publish:
    mov [rdi + 0x10], ecx
    wait_consumed
    dec edx
    jnz .again
    finish
