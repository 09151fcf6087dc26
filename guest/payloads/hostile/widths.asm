; Reads and writes the config table in every width, also across fields. This is allowed.
%include "driver.inc"
%macro expect 2
    mov eax, %2
    cmp %1, rax
    jne .wrong
%endmacro
    begin
    mov rdx, [rdi]              ; magic, length, both statuses
    mov rax, 0x0000010074726976
    cmp rdx, rax
    jne .wrong
    movzx edx, word [rdi + 3]   ; the magic's last byte and the length's first
    expect rdx, 0x0074
    movzx edx, byte [rdi + 5]
    expect rdx, 0x01
    mov word [rdi + 8], 0x0201  ; selector and q0_ctl
    mov edx, [rdi + 7]
    expect rdx, 0x00020100
    finish
.wrong:
    hlt
