; A driver that never wraps its index and never checks for a full queue. It works only if the queue is longer than the
; message.
%include "driver.inc"
    begin
    reset
    config
    ready
    mov esi, message
.next:
    lodsb
    test al, al
    jz .done
    push_byte al
    jmp .next
.done:
    finish

message: db "Ana are mere", 0
